#!/usr/bin/env python3
"""Writes want/*.want: what jinja2 makes of the templates here, for tests/test_jinja.c.

    pip install jinja2 && python3 tests/jinja_cases/make.py

  NAME.jinja     our own templates, in the manner of the model family that NAME says, rendered
                 with each line of chats.vars
  snippets.txt   small constructs, one between two lines "====", rendered with snippets.vars
  fuzzed.txt     the same, written by a random generator and kept because both agree on them

A .want file has one JSON value a line: the text, or null where jinja2 raises an error.
The environment is that of Hugging Face's apply_chat_template, with a clock that stands still.
"""
import datetime
import glob
import json
import os

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime.datetime(2025, 7, 4, 9, 5, 7)


class Generation(Extension):
    """{% generation %}: a call block whose body is printed as it is."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def refuse(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda fmt: NOW.strftime(fmt)
    return env


ENV = environment()


def render(template, variables):
    try:
        return ENV.from_string(template).render(**variables)
    except Exception:  # whatever Python raises is an error of the template
        return None


def read(path):
    with open(path, encoding="utf-8", newline="") as f:
        return f.read()


def write(name, values):
    with open(f"want/{name}.want", "w", encoding="utf-8") as f:
        for v in values:
            f.write(json.dumps(v, ensure_ascii=False) + "\n")


def main():
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    os.makedirs("want", exist_ok=True)
    chats = [json.loads(line) for line in read("chats.vars").splitlines()]
    for path in sorted(glob.glob("*.jinja")):
        write(path[:-6], [render(read(path), v) for v in chats])
    variables = json.loads(read("snippets.vars"))
    for name in ("snippets", "fuzzed"):
        parts = read(f"{name}.txt").split("\n====\n")[:-1]
        write(name, [render(p, variables) for p in parts])


if __name__ == "__main__":
    main()
