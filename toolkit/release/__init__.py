"""Putting a bundle into service, and telling people: alias, model card, report page, tables."""
