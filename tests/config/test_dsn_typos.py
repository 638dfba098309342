"""A misspelled word of a connection string is named; nothing that could be a part of a password is."""

import pytest

from support.runner import Posduif

pytestmark = pytest.mark.one_server


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        ("host=x pasword=hunter2", '"pasword" is unknown; did you mean "password"?'),
        ("postgresql://alice@x/y?sslmod=require", '"sslmod" is unknown; did you mean "sslmode"?'),
        ("host=x pssword=hunter2 user=a", '"pssword" is unknown; did you mean "password"?'),
    ],
)
def test_a_misspelled_word_is_named(cli: Posduif, clean_environ: pytest.MonkeyPatch, dsn: str, said: str) -> None:
    clean_environ.setenv("POSDUIF_DSN", dsn)
    error = cli("tenant", "list", "-o", "json", code=3).error
    assert said in error["message"]
    assert "hunter2" not in str(error) + cli("config", "show").out + cli("doctor", code=1).out


def test_a_part_of_a_password_is_not(cli: Posduif, clean_environ: pytest.MonkeyPatch) -> None:
    clean_environ.setenv("POSDUIF_DSN", "host=x password=top hunter2=x")
    shown = cli("tenant", "list", code=3).err + cli("config", "show").out + cli("doctor", code=1).out
    assert "hunter2" not in shown
