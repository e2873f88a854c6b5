"""How the field scores answers: one file per protocol; answers go in, its metrics come out."""
