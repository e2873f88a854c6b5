"""The tool for LangChain and LangGraph."""

from typing import TYPE_CHECKING, Annotated, Any

from medvqa.serve.references import listed
from medvqa.serve.tool import DESCRIPTION, IMAGES, NAME, QUERY, Specialist
from medvqa.serve.tool_error import ErrorKind, ToolError

if TYPE_CHECKING:
    from langchain_core.tools import StructuredTool


def langchain_tool(specialist: Specialist) -> "StructuredTool":
    """Return the tool; wrong arguments come back as text too."""
    from langchain_core.tools import StructuredTool
    from pydantic import BaseModel, BeforeValidator, Field

    class Arguments(BaseModel):
        """What a chat model is told about the arguments."""

        query: Annotated[str, Field(description=QUERY)]
        images: Annotated[list[str] | None, BeforeValidator(listed), Field(description=IMAGES)] = (
            None
        )

    return StructuredTool.from_function(
        specialist.great_brain_specialist,
        name=NAME,
        description=DESCRIPTION,
        args_schema=Arguments,
        handle_validation_error=_invalid,
    )


def _invalid(error: Any) -> str:
    # Without the values, which may be secrets or megabytes.
    names = sorted({str(name) for problem in error.errors() for name in problem["loc"][:1]})
    message = f"check {', '.join(names)}: query is a string, images a list of strings"
    return str(ToolError(ErrorKind.invalid_arguments, message))
