"""virtkit.toml, written and read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenancy import settings

_TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)


@given(
    db=st.sampled_from(["unix:/run/a.sock", "ssl:10.0.0.1:6640,ssl:10.0.0.2:6640"]),
    crush_host=st.none() | _TEXT,
    user=_TEXT,
    timeout_s=st.floats(1, 1e6),
)
def test_written_settings_are_read_as_they_were(
    tmp_path_factory: pytest.TempPathFactory,
    db: str,
    crush_host: str | None,
    user: str,
    timeout_s: float,
) -> None:
    wanted = settings.Settings(
        db=db,
        host=settings.HostSettings(name="h1", tunnel_ip="10.0.0.9", crush_host=crush_host),
        ceph=settings.CephSettings(user=user, timeout_s=timeout_s),
    )
    file = tmp_path_factory.mktemp("settings") / "virtkit.toml"
    file.write_text(settings.as_toml(wanted), newline="")

    assert settings.load(file=file, environment={}) == wanted
