"""What counts as a secret, and texts without them."""

import pytest

from trainer.run.secrets import is_secret, is_secret_key, redact, redact_values, redact_words


@pytest.mark.parametrize(
    "name",
    [
        "WANDB_API_KEY", "HF_TOKEN", "TOKEN", "aws_secret_access_key", "DB_PASSWORD", "MY_SECRETS", "OPENAI_APIKEY",
        "GITHUB_PAT", "DB_PWD", "SMTP_PASS", "NPM_AUTH", "GOOGLE_APPLICATION_CREDENTIALS", "SSH_PASSPHRASE",
    ],
)  # fmt: skip
def test_variables_that_hold_secrets(name: str) -> None:
    assert is_secret(name)
    assert redact("x hidden-value y", {name: "hidden-value"}) == f"x ${name} y"


@pytest.mark.parametrize(
    "name", ["PATH", "PWD", "OLDPWD", "TOKENIZERS_PARALLELISM", "KEYBOARD", "NCCL_DEBUG", "SSH_AUTH_SOCK", "BYPASS"]
)
def test_other_variables(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize("name", ["token", "data.args.hf_token", "api-key", "apikey", "password", "github_pat"])
def test_keys_that_hold_secrets(name: str) -> None:
    assert is_secret_key(name)


@pytest.mark.parametrize("name", ["key", "sort_key", "num_tokens", "max_tokens", "compass", "pass", "data.root"])
def test_other_keys(name: str) -> None:
    assert not is_secret_key(name)


def test_a_command_line_is_shown_without_secrets_and_otherwise_as_it_is() -> None:
    plain = ["optim.args={betas: [0.9, 0.9]}", "data.root=/a:b", "--num-tokens", "3", "--lr", "1", "tracking=none"]
    assert redact_words(plain, {}) == plain
    words = [
        "data.args={token: abc, size: 3}",
        "a.api_key=xyz",
        "--hf-token",
        "zzz",
        "--password=abc",
        "http://u:p@h",
        "git+https://abc@h/x",
    ]
    assert redact_words(words, {}) == [
        "data.args={token: ***, size: 3}", "a.api_key=***", "--hf-token", "***", "--password=***", "http://u:***@h",
        "git+https://***@h/x",
    ]  # fmt: skip
    assert redact_words(["a.token=my-own-value"], {"MY_TOKEN": "my-own-value"}) == ["a.token=$MY_TOKEN"]


def test_a_token_in_the_place_of_a_name_is_hidden_and_a_name_beside_a_password_is_not() -> None:
    for login in ("ghp_abc", "ghp_abc:", "ghp_abc:x-oauth-basic"):
        assert redact(f"git clone https://{login}@host/x", {}) == "git clone https://***@host/x"
    assert redact("https://me:word@host:8080/x", {}) == "https://me:***@host:8080/x"
    assert redact("ssh://git@host:22/x https://host:8080/a@b", {}) == "ssh://git@host:22/x https://host:8080/a@b"


def test_a_secrets_name_ends_where_it_ends() -> None:
    assert redact("abcdefgh_1, abcdefghabcdefgh-x", {"A_KEY": "abcdefgh"}) == "${A_KEY}_1, $A_KEY$A_KEY-x"


def test_values_are_shown_without_secrets_and_with_their_types() -> None:
    values = {"a": {"token": "x", "key": "k", "n": 3, "list": ["http://u:p@h", None, 0.5]}, "password": "y" * 8}
    assert redact_values(values, {"DB_PASS": "y" * 8}) == {
        "a": {"token": "***", "key": "k", "n": 3, "list": ["http://u:***@h", None, 0.5]},
        "password": "$DB_PASS",
    }
