"""The command line of the development broker."""

from deploy.devbroker import command


def test_it_listens_where_it_is_told_and_nowhere_else() -> None:
    arguments = command("/bin/tansu", "127.0.0.1", 19092)
    assert arguments[:2] == ["/bin/tansu", "broker"]
    pairs = dict(zip(arguments[2::2], arguments[3::2], strict=True))
    assert pairs["--listener-url"] == pairs["--advertised-listener-url"] == "tcp://127.0.0.1:19092"
    assert pairs["--storage-engine"].startswith("memory:")
