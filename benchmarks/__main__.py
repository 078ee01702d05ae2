"""Run all benchmarks or some; the exit code is 1 if a result misses its promise."""

import argparse
import sys
from importlib import import_module

BENCHMARKS = {
    "cpu": "CPU time of send_event with all options, relative to a hand-written loop",
    "imports": "cost of the import, of a new client and of its first send",
    "plugin": "cost of the pytest plugin for a project that does not use it",
    "throughput": "events per second and CPU time, compared with other clients",
    "limits": "share of a rate limit that is used, and share of 429s",
    "fleet": "uncoordinated processes that share one API key",
    "interactive": "wait of a send_event during a bulk run",
    "memory": "memory and cost of a million streamed events",
    "outbox": "durable puts per second, compared with other stores on the same disk",
    "backfill": "time and memory to check and journal a million CSV rows",
    "handlers": "a FastAPI handler with and without the put of an outbox",
}
PICTURED = ("throughput", "limits", "fleet", "interactive", "memory", "outbox")
OPTIONS = {"fleet": "seconds", "memory": "events", "backfill": "rows"}


def main() -> None:
    described = "\n".join(f"  {name:12} {text}" for name, text in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Check what this package promises, and compare alternatives.",
        epilog=f"benchmarks:\n{described}\n\nInstall first: pip install '.[bench]'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="a benchmark from the list below; if omitted, all",
    )
    parser.add_argument(
        "--pictures",
        action="store_true",
        help="save the results and redraw the pictures in benchmarks/pictures",
    )
    parser.add_argument(
        "--seconds", type=float, help="duration of fleet in s; default: 120"
    )
    parser.add_argument(
        "--events", type=int, help="number of events of memory; default: 1000000"
    )
    parser.add_argument(
        "--rows", type=int, help="number of rows of backfill; default: 1000000"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"unknown benchmarks: {', '.join(sorted(unknown))}")
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
                options = [f"--{key} {value:g}" for key, value in chosen.items()]
                command = ["python -m benchmarks", name, "--pictures", *options]
                pictures.save(name, rows, " ".join(command))
                pictures.draw(name)
        if not good:
            missed.append(name)
    if missed:
        sys.exit(f"a result misses its promise: {', '.join(missed)}")


if __name__ == "__main__":
    main()
