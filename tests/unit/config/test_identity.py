import re

from medvqa.config.identity import run_id


def test_run_id_ignores_order_and_what_cannot_change_a_result() -> None:
    config = {"seed": 1, "lora": {"r": 16, "alpha": 32.0}, "fresh": False}
    same = {"fresh": True, "tracking": {"mode": "offline"}, "lora": {"alpha": 32.0, "r": 16}}
    assert run_id(config) == run_id({**same, "seed": 1})
    assert run_id(config) != run_id({**config, "seed": 2})
    trained = [run_id({**config, "training": {"steps": s, "gpus": s}}) for s in (4, 8)]
    assert run_id({**config, "training": {"steps": 4}}) == trained[0] != trained[1]
    assert re.fullmatch("[0-9a-f]{12}", run_id(config))
