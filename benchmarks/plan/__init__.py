"""What is to be run: recipe, grid, identity, jobs."""
