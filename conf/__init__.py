"""The configs that ship with the toolkit: one YAML a stage, and the groups they compose."""
