import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from medvqa.config.curriculum import (
    CurriculumConfig,
    Filter,
    Merge,
    Order,
    StageConfig,
)
from medvqa.config.errors import UserError
from medvqa.curriculum import plan_curriculum
from medvqa.data.example import AnswerType, Example
from medvqa.data.ordering import FILTERS, MERGES, ORDERS
from medvqa.data.plan import Plan

CONF = Path(__file__).parents[2] / "conf"
SHIPPED = sorted(path.stem for path in (CONF / "curriculum").glob("*.yaml"))


def example(
    name: str, answer_type: AnswerType, *, answer: str = "a", question: str = "q"
) -> Example:
    return Example(
        id=name,
        images=(),
        question=question,
        answers=(answer,),
        answer_type=answer_type,
        type_origin="rule",
        source="toy",
        split="train",
        image_ids=(),
    )


def pool(num_open: int, num_closed: int) -> list[Example]:
    """Open and closed in turn, so that a filter has to pick them apart."""
    opens = [example(f"o{i}", "open", answer="word " * (1 + i % 3)) for i in range(num_open)]
    closeds = [example(f"c{i}", "closed") for i in range(num_closed)]
    return sorted(opens + closeds, key=lambda e: (int(e.id[1:]), e.id))


def stage(name: str = "s", **values: object) -> StageConfig:
    return StageConfig(name=name, **values)  # type: ignore[arg-type]


def plan(
    *stages: StageConfig,
    examples: list[Example],
    max_steps: int = 10,
    batch_size: int = 2,
    seed: int = 0,
    merge: Merge = Merge.sequence,
) -> Plan:
    config = CurriculumConfig(name="test", stages=list(stages), merge=merge)
    return plan_curriculum(config, examples, max_steps=max_steps, batch_size=batch_size, seed=seed)


def open_then_closed(share: float = 0.5) -> tuple[StageConfig, StageConfig]:
    return (
        stage("open", filter=Filter.open, share=share),
        stage("closed", filter=Filter.closed, share=1 - share),
    )


def shipped(name: str) -> CurriculumConfig:
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        values = compose(f"curriculum/{name}").curriculum
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CurriculumConfig), values))
    assert isinstance(config, CurriculumConfig)
    return config


def test_shares_become_steps_and_steps_become_batches() -> None:
    made = plan(*open_then_closed(0.75), examples=pool(50, 50), max_steps=8, batch_size=3)
    first, second = made.stages
    assert [(s.name, s.first_step, s.num_steps) for s in made.stages] == [
        ("open", 0, 6),
        ("closed", 6, 2),
    ]
    assert len(first.example_ids) == 18
    assert len(second.example_ids) == 6
    assert {name[0] for name in first.example_ids} == {"o"}
    assert {name[0] for name in second.example_ids} == {"c"}
    assert (made.num_steps, len(made.order)) == (8, 24)


def test_largest_remainder_gives_exactly_the_steps_there_are() -> None:
    # 10 x (.45, .45, .1) = 4.5, 4.5, 1.0: the half that is left over goes to the first by name.
    stages = [
        stage("b", share=0.45),
        stage("a", share=0.45),
        stage("c", share=0.1),
    ]
    lengths = {s.name: s.num_steps for s in plan(*stages, examples=pool(9, 9)).stages}
    assert lengths == {"a": 5, "b": 4, "c": 1}


def test_shares_are_taken_as_written() -> None:
    # In floating point .29 x 100 is 28.999999999999996.
    stages = [stage("a", share=0.29), stage("b", share=0.71)]
    made = plan(*stages, examples=pool(9, 9), max_steps=100)
    assert [s.num_steps for s in made.stages] == [29, 71]


def test_a_share_below_one_step_is_an_error_with_its_numbers() -> None:
    stages = [stage("tiny", share=0.01), stage("rest", share=0.99)]
    with pytest.raises(UserError, match=r"'tiny': share=0\.01 of training\.max_steps=10 is less"):
        plan(*stages, examples=pool(9, 9))


def test_epochs_round_up_to_whole_steps() -> None:
    # 2 x 7 examples / batch of 4 = 3.5
    made = plan(stage(epochs=2.0), examples=pool(7, 0), batch_size=4)
    assert made.num_steps == 4
    assert made.stages[0].epochs == pytest.approx(16 / 7)


def test_epochs_are_taken_as_written() -> None:
    # In floating point 1.1 x 50 is 55.00000000000001, which would round up to 56.
    assert plan(stage(epochs=1.1), examples=pool(50, 0), batch_size=1).num_steps == 55


def test_steps_do_not_depend_on_max_steps() -> None:
    assert plan(stage(steps=3), examples=pool(9, 0), max_steps=99).num_steps == 3


def test_a_plan_that_no_memory_holds_is_refused_with_its_numbers() -> None:
    with pytest.raises(UserError, match=r"1,000,000 steps of 101 examples, more than 100,000,000"):
        plan(stage(steps=1_000_000), examples=pool(9, 0), batch_size=101)


def test_a_quota_limits_how_many_examples_are_different() -> None:
    only = plan(stage(quota=4, steps=6), examples=pool(50, 0)).stages[0]
    assert (only.num_available, only.num_distinct, only.epochs) == (4, 4, 3.0)
    assert set(Counter(only.example_ids).values()) == {3}


def test_an_impossible_quota_names_both_numbers() -> None:
    quota = stage("open", filter=Filter.open, quota=5000, steps=1)
    with pytest.raises(UserError, match=r"'open': quota=5000, but the pool has only 812 open"):
        plan(quota, examples=pool(812, 10))


def test_a_filter_without_match_counts_what_there_is() -> None:
    with pytest.raises(UserError, match=r"wants closed examples.*5 open and 0 closed"):
        plan(stage("closed", filter=Filter.closed, steps=1), examples=pool(5, 0))


@pytest.mark.parametrize("order", Order)
def test_no_example_comes_again_before_all_have_come(order: Order) -> None:
    ids = plan(stage(order=order, steps=9), examples=pool(7, 0)).order
    assert len(ids) == 18
    for start in (0, 7):
        assert len(set(ids[start : start + 7])) == 7
    assert len(set(ids[14:])) == 4


def test_every_epoch_is_shuffled_anew() -> None:
    ids = plan(stage(steps=2), examples=pool(50, 0), batch_size=50).order
    assert ids[:50] != ids[50:]


def test_dataset_order_takes_the_first_examples_as_they_stand() -> None:
    ids = plan(stage(order=Order.dataset, steps=2), examples=pool(3, 0)).order
    assert ids == ("o0", "o1", "o2", "o0")


def test_easy_first_shuffles_ties_once_for_all_passes() -> None:
    same = [example(f"o{i}", "open") for i in range(7)]
    ids = plan(stage(order=Order.easy_first, steps=7), examples=same).order
    assert ids[:7] == ids[7:]
    assert ids[:7] != tuple(e.id for e in same)


def test_easy_first_goes_by_words_of_answer_then_of_question() -> None:
    examples = [
        example("long", "open", answer="left lower lobe"),
        example("asked_long", "open", answer="liver", question="which organ is it"),
        example("asked_short", "open", answer="heart", question="which organ"),
        example("two", "open", answer="left lung"),
    ]
    ids = plan(stage(order=Order.easy_first, steps=4), examples=examples).order
    assert ids == ("asked_short", "asked_long", "two", "long") * 2


def test_easy_first_consumes_what_shuffle_consumes() -> None:
    # Ten steps of two: less than the pool, so a wrong order of cut and sort keeps only easy ones.
    examples = pool(60, 0)
    shuffled = plan(stage(steps=10), examples=examples).order
    sorted_ = plan(stage(order=Order.easy_first, steps=10), examples=examples).order
    assert set(shuffled) == set(sorted_)
    assert shuffled != sorted_


def test_same_seed_same_order_and_another_seed_another() -> None:
    orders = [plan(stage(steps=10), examples=pool(60, 0), seed=seed) for seed in (1, 1, 2)]
    assert orders[0].order == orders[1].order != orders[2].order
    assert orders[0].sha256 == orders[1].sha256 != orders[2].sha256


def test_stages_over_the_same_pool_draw_independently_of_each_other() -> None:
    made = plan(stage("a", steps=10), stage("b", steps=10), examples=pool(60, 0))
    assert made.stages[0].example_ids != made.stages[1].example_ids


def test_half_the_budget_uses_the_first_half_of_what_the_whole_uses() -> None:
    half = plan(*open_then_closed(), examples=pool(60, 60)).stages[0].example_ids
    whole = plan(stage("open", filter=Filter.open, share=1.0), examples=pool(60, 60)).order
    assert half == whole[: len(half)]


def test_the_hash_is_over_the_ids_one_a_line() -> None:
    made = plan(stage(order=Order.dataset, steps=1), examples=pool(2, 0))
    assert made.sha256 == hashlib.sha256(b"o0\no1").hexdigest()


@pytest.mark.parametrize("max_steps", [10, 11])  # odd: one stage gets a step more, the same one
def test_a_stage_uses_the_same_examples_wherever_it_stands(max_steps: int) -> None:
    first, second = open_then_closed()
    one = plan(first, second, examples=pool(40, 40), max_steps=max_steps)
    other = plan(second, first, examples=pool(40, 40), max_steps=max_steps)
    assert Counter(one.order) == Counter(other.order)
    assert one.stages[0].example_ids == other.stages[1].example_ids
    assert one.num_steps == other.num_steps == max_steps


@pytest.mark.parametrize("merge", [Merge.shuffle, Merge.interleave, Merge.easy_first])
def test_a_merge_keeps_the_multiset_and_makes_one_stage(merge: Merge) -> None:
    # 30 examples from each stage: open is seen 4.3 times over, closed less than once.
    examples = pool(7, 40)
    apart = plan(*open_then_closed(), examples=examples, max_steps=30)
    merged = plan(*open_then_closed(), examples=examples, max_steps=30, merge=merge)
    assert Counter(merged.order) == Counter(apart.order)
    assert merged.order != apart.order
    only = merged.stages[0]
    assert len(merged.stages) == 1
    assert (only.name, only.first_step, only.num_steps) == ("test", 0, 30)
    assert (only.num_available, only.num_distinct) == (47, 37)


def test_interleave_alternates_evenly() -> None:
    stages = open_then_closed(0.75)
    merged = plan(*stages, examples=pool(40, 40), max_steps=4, merge=Merge.interleave)
    # Positions (i + .5) / 6 for open, (j + .5) / 2 for closed: .08 .25 .25 .42 .58 .75 .75 .92
    assert "".join(name[0] for name in merged.order) == "oocoooco"


def test_merged_easy_first_is_easy_first_pass_by_pass() -> None:
    stages = (stage("x", steps=3),)
    one = plan(stage("x", steps=3, order=Order.easy_first), examples=pool(3, 0))
    merged = plan(*stages, examples=pool(3, 0), merge=Merge.easy_first)
    # Answers of o0, o1, o2 have 1, 2 and 3 words.
    assert one.order == merged.order == ("o0", "o1", "o2") * 2


def test_stage_at_finds_the_stage_of_each_step() -> None:
    made = plan(stage("a", steps=2), stage("b", steps=1), examples=pool(9, 0))
    assert [made.stage_at(step).name for step in range(3)] == ["a", "a", "b"]
    with pytest.raises(ValueError, match="step 3 is past the plan's 3 steps"):
        made.stage_at(3)


# Three passes over examples whose order, difficulty and stage all differ.
UNEVEN = [
    example("o0", "open", answer="three short words", question="a b c"),
    example("o1", "open", answer="one", question="a b"),
    example("o2", "open", answer="two words"),
    example("o3", "open", answer="four quite short words"),
    example("c0", "closed", answer="yes", question="a b c d"),
    example("c1", "closed", answer="no"),
    example("c2", "closed", answer="yes", question="a"),
    example("c3", "closed", answer="no", question="a b c"),
]
UNEVEN = [replace(e, source=e.answer_type) for e in UNEVEN]


def order_of(order: Order) -> tuple[str, ...]:
    return plan(stage(order=order, steps=12), examples=UNEVEN).order


def merge_of(merge: Merge) -> Plan:
    return plan(*open_then_closed(), examples=UNEVEN, max_steps=8, merge=merge)


@pytest.mark.parametrize("order", Order)
def test_an_order_has_a_documented_function_and_is_no_other_order(order: Order) -> None:
    assert ORDERS[order].__doc__
    assert f"`{order.name}`" in (Order.__doc__ or "")
    others = [order_of(other) for other in Order if other is not order]
    assert order_of(order) not in others
    assert Counter(order_of(order)) == Counter(order_of(Order.shuffle))


@pytest.mark.parametrize("merge", Merge)
def test_a_merge_has_a_documented_function_and_is_no_other_merge(merge: Merge) -> None:
    assert MERGES[merge].__doc__
    assert f"`{merge.name}`" in (Merge.__doc__ or "")
    others = [merge_of(other).order for other in Merge if other is not merge]
    assert merge_of(merge).order not in others
    assert Counter(merge_of(merge).order) == Counter(merge_of(Merge.sequence).order)


@pytest.mark.parametrize("choice", Filter)
def test_a_filter_has_a_function_and_is_no_other_filter(choice: Filter) -> None:
    pools = {other: [e.id for e in FILTERS[other](UNEVEN)] for other in Filter}
    assert pools[choice]
    assert [other for other in Filter if pools[other] == pools[choice]] == [choice]


@pytest.mark.parametrize("table", [ORDERS, MERGES, FILTERS], ids=["order", "merge", "filter"])
def test_a_choice_without_a_function_is_an_error_and_never_another_choice(table, monkeypatch):
    choice = list(table)[1]
    monkeypatch.delitem(table, choice)
    name = {id(ORDERS): "order", id(FILTERS): "filter"}.get(id(table))
    settings = {name: choice} if name else {}
    merge = choice if table is MERGES else Merge.sequence
    with pytest.raises(UserError, match=f"={choice.name} has no function in medvqa.data.ordering"):
        plan(stage(steps=2, **settings), examples=UNEVEN, merge=merge)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_carries_its_own_name_and_command(name: str) -> None:
    lines = (CONF / "curriculum" / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[1] == f"# python train.py curriculum={name}"
    assert shipped(name).name == name


def test_arms_of_one_study_spend_the_same_examples() -> None:
    arms = {
        name: plan_curriculum(shipped(name), pool(30, 30), max_steps=41, batch_size=8, seed=3)
        for name in (
            *("open_first", "closed_first", "mixed", "interleaved", "easy_first", "hard_first"),
        )
    }
    counts = [Counter(made.order) for made in arms.values()]
    assert all(count == counts[0] for count in counts)
    assert len({made.sha256 for made in arms.values()}) == 6
    assert {made.num_steps for made in arms.values()} == {41}
    assert {name[0] for name in arms["open_first"].stages[0].example_ids} == {"o"}
    assert {name[0] for name in arms["closed_first"].stages[0].example_ids} == {"c"}


def levelled(*levels: float | None, source: str = "toy") -> list[Example]:
    made = [example(f"{source}{n}", "open") for n in range(len(levels))]
    return [replace(e, difficulty=d, source=source) for e, d in zip(made, levels, strict=True)]


def test_a_stated_difficulty_decides_before_the_length_of_answers() -> None:
    examples = levelled(3, 1, 2, 1)
    level = {e.id: e.difficulty for e in examples}
    for order, expected in ((Order.easy_first, [1, 1, 2, 3]), (Order.hard_first, [3, 2, 1, 1])):
        ids = plan(stage(order=order, steps=4), examples=examples).order
        assert [level[name] for name in ids] == expected * 2


def test_a_difficulty_that_only_some_examples_state_is_an_error() -> None:
    with pytest.raises(UserError, match="1 of 2 examples state a difficulty"):
        plan(stage(order=Order.hard_first, steps=2), examples=levelled(1, None))


def test_by_complexity_goes_up_the_levels_and_the_plan_counts_them() -> None:
    examples = levelled(*([1, 2, 3] * 10))
    made = plan_curriculum(shipped("by_complexity"), examples, max_steps=12, batch_size=2, seed=0)
    assert [stage.levels for stage in made.stages] == [{1.0: 8}, {2.0: 8}, {3.0: 8}]
    assert made.stages[0].describe()["levels"] == {"1": 8}
    assert str(made.stages[2]) == "level_3 4 steps with 8 of level 3"
    with pytest.raises(
        UserError, match="'level_1' wants examples of level 1; the pool states none"
    ):
        plan_curriculum(shipped("by_complexity"), pool(3, 3), max_steps=12, batch_size=2, seed=0)


def test_sources_are_spread_evenly_over_each_pass() -> None:
    examples = [*levelled(*[1] * 8, source="big"), *levelled(*[1] * 2, source="small")]
    made = plan(stage(order=Order.interleave_sources, steps=10), examples=examples)
    first, second = made.order[:10], made.order[10:]
    assert Counter(first) == Counter(second) == Counter(e.id for e in examples)
    for once in (first, second):
        assert [name[:5] for name in (*once[:5], *once[5:])].count("small") == 2
        assert sum(name.startswith("small") for name in once[:5]) == 1
