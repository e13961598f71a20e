"""What commands answer: one document, or one line for what the user can mend."""

import json


def document(answer):
    """The one JSON document of a command that went well."""
    code, out, err = answer
    assert code == 0, err
    return json.loads(out)


def spoken(done):
    """The one JSON document of a process that went well."""
    return document((done.returncode, done.stdout, done.stderr))


def assert_refused(answer, *words):
    """Exit code 2, nothing on standard output, one line of error and it is the last, with these words in it."""
    code, out, err = answer
    assert code == 2 and out == "", (code, out, err)
    assert "Traceback" not in err
    *before, last = err.splitlines()
    assert last.startswith("error: ") and not any(line.startswith("error") for line in before), err
    for word in words:
        assert word in last, f"{word!r} is not in {last!r}"
