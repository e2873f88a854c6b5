"""A model and questions in; predictions, scores and intervals out."""
