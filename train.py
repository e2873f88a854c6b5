"""Train and evaluate: `python train.py`; `python train.py --help` lists the choices."""

from medvqa.cli import main

if __name__ == "__main__":
    main()
