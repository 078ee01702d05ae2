"""All benchmarks, or some: python -m benchmarks. Fails if one misses its promise."""

import argparse
import sys
from importlib import import_module

BENCHMARKS = {
    "cpu": "CPU of send_event with everything on, over a hand-written loop",
    "imports": "what the import, the client and the first send cost",
    "plugin": "what the fixtures cost a pytest run that does not use them",
    "throughput": "events a second and CPU, beside everything else",
    "limits": "how much of a rate limit is used, and how many 429s",
    "fleet": "processes that share a key, uncoordinated",
    "interactive": "the wait of a send_event beside a bulk run",
    "memory": "a million events streamed",
    "outbox": "durable puts a second, beside other stores on the same disk",
    "backfill": "a million rows of CSV checked and journalled",
    "handlers": "a FastAPI handler with the put of an outbox, and without",
}
PICTURED = ("throughput", "limits", "fleet", "interactive", "memory", "outbox")
OPTIONS = {"fleet": "seconds", "memory": "events", "backfill": "rows"}


def main() -> None:
    described = "\n".join(f"  {name:12} {what}" for name, what in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure, beside the alternatives, what this package promises.",
        epilog=f"benchmarks:\n{described}\n\nThey need: pip install '.[bench]'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="one of those below; all if none"
    )
    parser.add_argument(
        "--pictures",
        action="store_true",
        help="keep the results, and draw them anew in benchmarks/pictures",
    )
    parser.add_argument("--seconds", type=float, help="measured by fleet, 120 if none")
    parser.add_argument(
        "--events", type=int, help="streamed by memory, 1000000 if none"
    )
    parser.add_argument("--rows", type=int, help="read by backfill, 1000000 if none")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    missed = []
    for name in arguments.names or BENCHMARKS:
        print(f"\n== {name}: {BENCHMARKS[name]}", flush=True)
        benchmark = import_module(f".{name}", __package__)
        if name not in PICTURED and name not in OPTIONS:
            good = benchmark.main()
        else:
            option = OPTIONS.get(name, "")
            value = getattr(arguments, option, None)
            chosen = {} if value is None else {option: value}
            rows = benchmark.measure(**chosen)
            good = benchmark.report(rows)
            if arguments.pictures and name in PICTURED:
                pictures = import_module(".pictures", __package__)
                given = [f"--{what} {value:g}" for what, value in chosen.items()]
                command = ["python -m benchmarks", name, "--pictures", *given]
                pictures.keep(name, rows, " ".join(command))
                pictures.draw(name)
        if not good:
            missed.append(name)
    if missed:
        sys.exit(f"not as promised: {', '.join(missed)}")


if __name__ == "__main__":
    main()
