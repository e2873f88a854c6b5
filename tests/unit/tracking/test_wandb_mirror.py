"""What W&B refuses."""

from typing import ClassVar

from medvqa.tracking.wandb_mirror import Tracker


def test_what_wandb_refuses_costs_a_warning_only(caplog):
    class Refusing:
        summary: ClassVar[dict] = {}

        def define_metric(self, *args, **kwargs):
            pass

        def log(self, values):
            raise OSError("no space left on device")

    Tracker(Refusing(), table_rows=0).log({"train/loss": 1.0}, step=3)
    assert "W&B refused record 1 (no space left on device)" in caplog.text
