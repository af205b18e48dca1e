"""The tree of errors: what its classes say of themselves."""

from shared.errors import Overloaded, PrfaasError, Unavailable


def below(cls: type[PrfaasError]) -> list[type[PrfaasError]]:
    return [
        leaf for child in cls.__subclasses__() if child.__module__ == cls.__module__ for leaf in (child, *below(child))
    ]


CLASSES = below(PrfaasError)


def test_only_a_worker_that_is_lost_or_full_is_a_reason_to_try_another() -> None:
    assert len(CLASSES) > 15
    for cls in CLASSES:
        assert cls.retriable == issubclass(cls, (Unavailable, Overloaded)), cls
