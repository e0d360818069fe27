"""Commands about the platform: run the graph, see how far it is, and what stands in its way."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from geo_assets.cli.group import Command
from geo_assets.home import find_home, prepare_home

if TYPE_CHECKING:
    from geo_assets.runs import FailedPartition, LastRun


@click.command(
    cls=Command,
    examples="""
    materialize --select splat_ply --city lund
    materialize --select splat_ply --city lund --missing
    materialize --select '*splat_city' --city lund --box r00c00
    materialize --select group:geotag
    """,
    writes="tables and files of the lake, and a run for each box in the Dagster instance.",
    then="""
    status
    show CITY
    """,
)
@click.option(
    "--select",
    "selection",
    required=True,
    help="assets in Dagster's selection syntax: splat_ply, '*splat_ply', 'group:geotag'",
)
@click.option("--city", "cities", multiple=True, help="only this city (may be repeated); all by default")
@click.option(
    "--box", "boxes", multiple=True, help="only this box (may be repeated); every box that holds images by default"
)
@click.option("--missing", is_flag=True, help="leave alone what is there already, even if selected")
@click.option("--verbose", is_flag=True, help="show Dagster's own log")
def materialize(selection: str, cities: tuple[str, ...], boxes: tuple[str, ...], missing: bool, verbose: bool) -> None:
    """Make assets of every box that holds images.

    What they are made from comes first where it is missing. A killed run goes on where it was.
    """
    from geo_assets.settings import load

    if boxes and len(cities) != 1:
        raise click.UsageError("A box belongs to a city: give exactly one --city with --box.")
    settings = load()
    for city in cities:  # a wrong name is told before Dagster is loaded
        settings.city(city)
        for box in boxes:
            settings.box(city, box)
    prepare_home()
    outcome = _materializer(verbose).run(selection, cities, boxes, only_missing=missing)
    click.echo(f"{len(outcome.done)} runs done, {outcome.skipped} boxes without images, {len(outcome.failed)} failed.")
    if outcome.failed:
        for place, reason in outcome.failed.items():
            click.echo(f"  {place}: {reason}", err=True)
        click.echo(
            f"What is done is kept. Mend the cause, then: geo-assets materialize {_again(selection, cities)}", err=True
        )
        sys.exit(1)
    click.echo("Next: geo-assets status")


@click.command(
    cls=Command,
    examples="demo",
    writes="lake/ with every table and file of the demo city, and .dagster/ with its runs.",
    then="""
    show demo
    status demo
    city add lund --photos FOLDER
    """,
)
@click.option("--verbose", is_flag=True, help="show Dagster's own log")
def demo(verbose: bool) -> None:
    """Run the whole graph for the embedded demo city.

    It takes some minutes, needs neither token nor network, and goes on where it was after it was killed.
    """
    from geo_assets.demo.run import run_demo

    prepare_home()
    sys.exit(run_demo(lambda: _materializer(verbose), click.echo))


@click.command(
    cls=Command,
    examples="""
    dev
    dev --port 3001
    """,
    writes=".dagster/, the instance, where there is none yet.",
    then="materialize --select splat_ply --city CITY",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def dev(arguments: tuple[str, ...]) -> NoReturn:
    """Open the Dagster UI on http://127.0.0.1:3000.

    It shares the instance of this command line. ARGUMENTS are those of `dagster dev`.
    """
    prepare_home()
    command = [sys.executable, "-m", "dagster", "dev", "-m", "geo_assets.definitions", *arguments]
    os.execv(sys.executable, command)


@click.command(
    cls=Command,
    examples="definitions",
    writes="nothing.",
    then="dev",
)
def definitions() -> None:
    """Check that the code location loads."""
    from geo_assets.sql_models import read_models

    read_models()  # a wrong SQL model is one sentence here, a traceback from Dagster
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-m", "geo_assets.definitions"]
    sys.exit(subprocess.run(command, check=False).returncode)


@click.command(
    cls=Command,
    examples="""
    status
    status lund
    status --json
    """,
    writes="nothing; it reads the lake, and of the Dagster instance what failed.",
    then="""
    show CITY
    materialize --select splat_ply --city CITY --missing
    """,
)
@click.argument("cities", nargs=-1, metavar="[CITY]...")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def status(cities: tuple[str, ...], as_json: bool) -> None:
    """Say how far each city is, and what to type next.

    Images are counted at each stage of the funnel: named by the coverage tiles, harvested, downloaded, with features,
    in a verified pair, registered in a model, in a splat. Boxes are counted where at least one image came so far.
    """
    from geo_assets import status as report
    from geo_assets.lake import Lake
    from geo_assets.settings import load

    settings = load()
    lake = Lake(settings.lake)
    found = report.city_status(lake, settings, cities or tuple(settings.cities))
    photos = report.geotag_status(lake)
    last, failed = _runs()
    if as_json:
        answer = {
            "lake": lake.uri(lake.root),
            "cities": [report.as_dict(city) for city in found],
            "geotag": report.as_dict(photos),
            "last_run": last and vars(last),
            "failed_partitions": [vars(partition) for partition in failed],
        }
        click.echo(json.dumps(answer))
        return
    for city in found:
        click.echo("\n".join(report.city_lines(city)) + "\n")
    if not cities:
        click.echo("\n".join(report.geotag_lines(photos)))
    if last is not None:
        took = f" in {last.seconds:.0f} s" if last.seconds is not None else ""
        click.echo(f"last run: {last.status.lower()}{took}, {last.partition or 'no partition'}, {last.began_at}")
    for partition in failed[:10]:
        click.echo(f"failed: {partition.asset} {partition.partition or ''}, {partition.failed_at}: {partition.reason}")
    if len(failed) > 10:
        click.echo(f"... and {len(failed) - 10:,} more failed partitions (--json names them all)")


@click.command(
    cls=Command,
    examples="""
    doctor
    doctor --offline
    doctor --json
    """,
    writes="nothing but a probe file in the lake, which it removes again.",
    then="status",
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@click.option("--offline", is_flag=True, help="ask nobody over the network, not even whether the token is valid")
def doctor(as_json: bool, offline: bool) -> None:
    """Say what stands in the way, and what to do about it.

    It looks at python, packages, machine, settings, lake, disk, token, hosts, engines and the Dagster instance.

    It ends with 1 where something will not work (fail); what could be better is a warning (warn).
    """
    from geo_assets import doctor as look

    findings: list[look.Finding] = []
    for finding in look.examine(offline=offline):
        findings.append(finding)
        if not as_json:
            click.echo("\n".join(look.lines(finding)))
    if as_json:
        click.echo(look.as_json(findings))
    sys.exit(int(any(finding.state == "fail" for finding in findings)))


def _runs() -> tuple[LastRun | None, list[FailedPartition]]:
    """The last run and what failed, where there is an instance with a run; otherwise Dagster is not even imported."""
    home = find_home()
    if home is None:
        return None, []
    import dagster as dg

    from geo_assets import runs

    with dg.DagsterInstance.get() as instance:
        return runs.last_run(instance), runs.failed_partitions(instance)


def _again(selection: str, cities: tuple[str, ...]) -> str:
    """The options that make what is missing of a selection."""
    return " ".join(["--select", shlex.quote(selection), *(f"--city {city}" for city in cities), "--missing"])


def _materializer(verbose: bool) -> Any:
    import dagster as dg

    from geo_assets.definitions import defs
    from geo_assets.lake import Lake
    from geo_assets.materialize import Materializer
    from geo_assets.partitions import settings

    return Materializer(
        defs, settings, Lake(settings.lake), dg.DagsterInstance.get(), click.echo, "INFO" if verbose else "CRITICAL"
    )


COMMANDS = (materialize, demo, status, doctor, dev, definitions)
