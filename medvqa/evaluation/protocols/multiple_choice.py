"""`multiple_choice`: the option that an answer names, in the manner of MMMU and MedEvalKit.

The letter counts; else the option whose text occurs; else the most similar option. So every answer
names an option. Guesses are counted. Source: Yue et al., MMMU, 2024, and MedEvalKit's utils.py.
"""

from medvqa.config.errors import about
from medvqa.data.example import Prediction
from medvqa.evaluation.choice import correct_option, read_choice
from medvqa.evaluation.protocols.protocol import Protocol


def rule(prediction: Prediction, is_closed: bool) -> dict[str, float]:
    """Score a question with options; others are left out."""
    if not prediction.options:
        return {}
    choice = read_choice(prediction.prediction, prediction.options)
    with about(f"question {prediction.id}"):
        is_right = choice.place == correct_option(prediction.references, prediction.options)
    return {
        "accuracy": float(is_right),
        "answered by letter": float(choice.how == "letter"),
        "answered by text": float(choice.how == "text"),
        "nearest option taken": float(choice.how == "nearest"),
    }


PROTOCOL = Protocol(
    name="multiple_choice",
    source="MMMU (Yue et al., 2024); MedEvalKit, utils/utils.py",
    split="questions with options only",
    rule=rule,
    shown=("accuracy", None, None),
    remaining="order and letters of the options, the prompt; MMMU draws at random where no option "
    "can be read, MedEvalKit takes the nearest",
)
