"""One function a stage: it takes bundles and gives a bundle or a report, and holds no algorithm of its own."""
