"""WHEN MODULE.FUNCTION N ARGUMENTS...: `svctl ARGUMENTS`, killed `before` or `after` the Nth call
of a function of virtkit's: the points that a timed kill hits once in many runs. It is `nvctl` if
the function is netvirt's."""

import importlib
import itertools
import os
import sys

when, name, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
del sys.argv[1:4]
module_name, _, function_name = name.rpartition(".")
module = importlib.import_module(module_name)
function = getattr(module, function_name)
calls = itertools.count(1)


def dying(*arguments: object, **options: object) -> object:
    last = next(calls) == number
    if last and when == "before":
        os._exit(9)
    result = function(*arguments, **options)
    if last:
        os._exit(9)
    return result


setattr(module, function_name, dying)
importlib.import_module("netvirt.cli" if name.startswith("netvirt.") else "storvirt.cli").main()
