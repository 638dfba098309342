"""Lists as people have them: from spreadsheets of any country, from Windows, from an editor."""

import pytest

from posduif_cli.config import lists

EXPECTED = [{"name": "acme", "url": "https://acme.example.com", "web_user": "desk"}, {"name": "bolt"}]
TEXTS = {
    "commas": "name,url,web_user\nacme,https://acme.example.com,desk\nbolt\n",
    "semicolons": "Name;URL;Web User\nacme;https://acme.example.com;desk\nbolt\n",
    "tabs": "NAME\tUrl\tweb-user\nacme\thttps://acme.example.com\tdesk\nbolt\n",
    "a byte order mark": "\ufeffname;url;web_user\nacme;https://acme.example.com;desk\nbolt\n",
    "Windows": "name;url;web_user\r\nacme;https://acme.example.com;desk\r\n\r\nbolt\r\n",
    "quotes": '"name";"url";"web_user"\n"acme";"https://acme.example.com";"desk"\n"bolt"\n',
    "a remark": "# ours, of May\nname;url;web_user\nacme;https://acme.example.com;desk\n# not yet: zeta\nbolt\n",
    "YAML of Windows": "\ufeff- name: acme\r\n  url: https://acme.example.com\r\n  Web User: desk\r\n- name: bolt\r\n",
    "JSON": '[{"name": "acme", "url": "https://acme.example.com", "web user": "desk"}, {"name": "bolt"}]',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_kind_of_list_says_the_same(text: str) -> None:
    rows = lists.rows(text, "stdin", required="name")
    assert [{k: v for k, v in row.values.items() if v} for row in rows] == EXPECTED


def test_a_comma_within_a_value_of_a_list_with_semicolons() -> None:
    [row] = lists.rows("name;web_user\nacme;desk, the first\n", "x.csv", required="name")
    assert row.values == {"name": "acme", "web_user": "desk, the first"}
