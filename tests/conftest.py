"""What every test may use; see support/."""

import pytest

pytest.register_assert_rewrite("support")
pytest_plugins = ["support.servers", "support.runner", "support.tenants", "support.folder", "support.hints"]
pytest_plugins += ["support.checks"]
