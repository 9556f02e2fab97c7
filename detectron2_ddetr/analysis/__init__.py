"""What a model costs, counted and measured."""
