"""A question and its answer in the model's own chat template: the prompt, and what is learned."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from medvqa.config.errors import UserError
from medvqa.config.prompt import PromptConfig
from medvqa.models.prompt import DEFAULT, Message, user_message

# Their template writes a space before the newline of an answer, but not into the prompt. So the
# answer's turn is the prompt, the answer and the tokenizer's end of text. The same holds where a
# template writes no end of turn.
OWN_TURN = ("LlavaOnevisionProcessor",)
PROBE = "yes"


@dataclass(frozen=True)
class Turn:
    """A rendered question and its answer.

    Attributes:
        prompt: Text that the model is given, with one marker per picture.
        prompt_ids: Its token ids.
        answer: Text behind the prompt, the end of the turn included.
        answer_ids: Its token ids.
    """

    prompt: str
    prompt_ids: tuple[int, ...]
    answer: str
    answer_ids: tuple[int, ...]


class Template:
    """Renders turns with thinking off.

    Attributes:
        end_token_id: What ends an answer.
    """

    def __init__(self, processor: Any, prompt: PromptConfig = DEFAULT) -> None:
        self.processor = processor
        self._message = partial(user_message, prompt=prompt)
        template = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
        self._template = template.get("default") if isinstance(template, dict) else template
        if not self._template:
            raise UserError(
                f"the model's {type(processor).__name__} has no chat template, which would write "
                "the prompt; choose an instruction-tuned model"
            )
        self._has_own_turn = type(processor).__name__ in OWN_TURN
        end = self._find_end()
        if end is None:  # LLaVA 1.5, GLM-4V: the next speaker's name would follow
            self._has_own_turn = True
            end = self._find_end()
        if end is None:
            raise UserError(
                "the model would not learn to stop. Its chat template writes no end of turn behind "
                "an answer, and its tokenizer has no end of text"
            )
        self.end_token_id = end
        self._end = str(processor.tokenizer.convert_ids_to_tokens(end))

    def _find_end(self) -> int | None:
        """Return the first special token behind an answer."""
        tokenizer = self.processor.tokenizer
        _, _, rest = self._split(self._message("", num_images=0), PROBE)
        added = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
        special = added.union(tokenizer.all_special_ids)
        return next((token for token in rest if token in special), None)

    def prompt(self, question: str, *, num_images: int) -> str:
        """Return the text that the model is given, with one marker per picture."""
        return self._render([self._message(question, num_images=num_images)], prompt=True)

    def turn(self, question: str, answer: str, *, num_images: int) -> Turn:
        """Return the prompt, and the answer with the end of its turn.

        Raises:
            UserError: If the prompt's tokens do not begin those of prompt and answer, or the rest
                is not the answer and the end of the turn.
        """
        message = self._message(question, num_images=num_images)
        prompt, text, ids = self._split(message, answer)
        stop = (ids.index(self.end_token_id) if self.end_token_id in ids else len(ids)) + 1
        decode = partial(self.processor.tokenizer.decode, clean_up_tokenization_spaces=False)
        learned, behind = decode(ids[:stop]), decode(ids[stop:])
        if learned.strip() != f"{answer.strip()}{self._end}" or behind.strip():
            raise UserError(
                f"the model's chat template turns the answer {answer!r} into {text!r}, which is "
                "not the answer and the end of the turn"
            )
        end = text.index(self._end) + len(self._end)
        return Turn(prompt, tuple(tokenize(self.processor, prompt)), text[:end], tuple(ids[:stop]))

    def _split(self, message: Message, answer: str) -> tuple[str, str, list[int]]:
        """Return the prompt, and what follows it as text and as token ids."""
        prompt = self._render([message], prompt=True)
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        whole = self._render([message, reply])
        if self._has_own_turn:
            is_continued = whole.startswith(prompt)
            body = whole[len(prompt) :].rstrip() if is_continued else answer.strip()
            whole = f"{prompt}{body}{self.processor.tokenizer.eos_token or ''}"
        prompt_ids, ids = tokenize(self.processor, prompt), tokenize(self.processor, whole)
        if not whole.startswith(prompt) or ids[: len(prompt_ids)] != prompt_ids:
            raise UserError(
                f"the answer {answer!r} would be learned behind another text than the prompt, "
                f"which ends in {prompt[-40:]!r}; the chat template renders the two differently"
            )
        return prompt, whole[len(prompt) :], ids[len(prompt_ids) :]

    def _render(self, messages: list[Message], *, prompt: bool = False) -> str:
        # The tokenizer renders as the processor does, without a warning for each option that the
        # template does not read.
        text = self.processor.tokenizer.apply_chat_template(
            messages,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=prompt,
            enable_thinking=False,
        )
        return str(text)


def tokenize(processor: Any, text: str) -> list[int]:
    """Return the token ids of a rendered chat, its pictures not expanded."""
    ids: list[int] = processor.tokenizer(text, **special_tokens(processor, text))["input_ids"]
    return ids


def special_tokens(processor: Any, text: str) -> dict[str, bool]:
    """Return the option that keeps a template's own first token from being added twice.

    It is the rule of transformers' `ProcessorMixin.apply_chat_template`.
    """
    first = processor.tokenizer.bos_token
    return {"add_special_tokens": False} if first and text.startswith(first) else {}
