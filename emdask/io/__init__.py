"""Files: open and save stacks; every other file of this package is one format or one verb."""
