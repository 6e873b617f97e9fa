"""What checks shapes and types while the tests run.

beartype with the numeric tower of PEP 484, as pyright reads signatures: an ``int`` is a ``float``.
"""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with its arguments and result checked; one made inside another stays as it is.

    A closure is made anew at every call, and with it the code that checks it: that took more time
    than all else a simulation does.
    """
    return function if "<locals>" in function.__qualname__ else _checked(function)
