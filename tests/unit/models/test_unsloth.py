"""What Unsloth refuses names the other backend."""

import pytest
from huggingface_hub.errors import HTTPError

from medvqa.config.errors import UserError
from medvqa.models.unsloth import refused_by_unsloth


@pytest.mark.parametrize("error", [NotImplementedError("no such\narchitecture"), KeyError("x")])
def test_a_model_that_unsloth_refuses_names_the_other_backend(error):
    message = r"^Unsloth does not accept a/b \(.*backend=transformers$"
    with pytest.raises(UserError, match=message), refused_by_unsloth("a/b"):
        raise error


@pytest.mark.parametrize("kind", [OSError, HTTPError])
def test_a_missing_file_or_connection_is_no_refusal_of_unsloth(kind):
    with pytest.raises(kind, match="gone"), refused_by_unsloth("a/b"):
        raise kind("gone")
