"""`rlprompt label`: people, or simulated annotators, compare a run's prompts; their votes become pairs."""

from __future__ import annotations

import getpass
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlprompt.cli.console import note, number, quiet_stdout, say, say_json, say_table
from rlprompt.errors import ConfigError

if TYPE_CHECKING:
    from rlprompt.evaluation.annotators import AnnotatorReport, CoupleReport, Share
    from rlprompt.preferences.elected import Elected
    from rlprompt.preferences.votes import Vote, VoteLog
    from rlprompt.runs.comparisons import LabelledRun, LabelQueue


def label(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    what: Annotated[
        str | None, typer.Option(help="outputs or prompts; by default outputs, where the run has stored any.")
    ] = None,
    builder: Annotated[
        str, typer.Option(metavar="NAME", help="Whose pairs are compared: random, or see rlprompt list pair-builders.")
    ] = "random",
    arg: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An argument of the builder (the value is YAML); repeatable."),
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Most comparisons.")] = 100,
    seed: Annotated[int | None, typer.Option(min=0, help="Draws comparisons and sides; the run's by default.")] = None,
    phase: Annotated[str, typer.Option(help="train or dev.")] = "train",
    annotator: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose votes they are; the login name by default.")
    ] = None,
    votes: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="The file of votes, by default RUN/votes/NAME.jsonl; repeatable to export."),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Open no browser.")] = False,
    simulate: Annotated[
        str | None, typer.Option(metavar="NAME", help="A simulated annotator votes, and no page is served.")
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="With --simulate: probability of a wrong vote, 0 to 0.5; 0.25 by default.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="SCORE", help="The score that --simulate votes by and --export compares with: reward."),
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the pairs that the votes make, and report on the votes.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --simulate or --export: one JSON object on standard output.")
    ] = False,
) -> int:
    """Serve a local page on which two outputs or prompts of a run are compared, and make pairs of the votes.

    rlprompt label runs/demo/ID --what prompts

    rlprompt label runs/demo/ID --simulate ann --noise 0.2

    rlprompt label runs/demo/ID --export pairs.jsonl
    """
    _check_options(what, simulate, export, annotator, votes or [], noise is not None, by is not None, as_json)
    if export is not None:
        return _export(run, phase, votes or [], what, by, export, as_json)
    with quiet_stdout():
        labelled = _labelled(run, phase)
        drawn = labelled.run.config.seed if seed is None else seed
        queue = labelled.queue(
            pairs,
            seed=drawn,
            what=what,  # type: ignore[arg-type]  # one of the two, as `_check_options` has seen
            builder=builder,
            arguments=_arguments(arg or []),
        )
    path = votes[0] if votes else None
    if simulate is not None:
        return _simulate(labelled, queue, simulate, noise, by, drawn, path, as_json)
    return _serve(labelled, queue, annotator or _login(), drawn, path, host, port, not no_open)


def _check_options(
    what: str | None,
    simulate: str | None,
    export: Path | None,
    annotator: str | None,
    votes: list[Path],
    noise_given: bool,
    by_given: bool,
    as_json: bool,
) -> None:
    """Refuses options that do not go together: serving, simulating and exporting are three things."""
    if what not in (None, "outputs", "prompts"):
        raise ConfigError(f"--what must be outputs or prompts, got '{what}'")
    if simulate is not None and export is not None:
        raise ConfigError("--simulate and --export are two steps; give one of them")
    if simulate is None and noise_given:
        raise ConfigError("--noise is for --simulate NAME")
    if simulate is not None and annotator is not None:
        raise ConfigError("--simulate NAME names the annotator; leave out --annotator")
    if simulate is None and export is None:
        for option, given in (("--json", as_json), ("--by", by_given)):
            if given:
                raise ConfigError(f"{option} is for --simulate and --export; the page has no use for it")
    if export is None and len(votes) > 1:
        raise ConfigError("votes go to one file; give --votes once")


def _labelled(run: Path, phase: str) -> LabelledRun:
    from rlprompt.runs import load_run
    from rlprompt.runs.comparisons import LabelledRun

    return LabelledRun(load_run(run), phase=phase)


def _arguments(given: list[str]) -> dict[str, Any]:
    from rlprompt.cli.pairs import parse_arguments

    return parse_arguments(given)


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in some containers
        return "annotator"


def _serve(
    labelled: LabelledRun,
    queue: LabelQueue,
    annotator: str,
    seed: int,
    path: Path | None,
    host: str,
    port: int,
    browse: bool,
) -> int:
    try:
        from rlprompt.labelling.server import serve
        from rlprompt.listening import listening
    except ImportError as error:
        raise ConfigError(
            f"rlprompt label needs FastAPI and uvicorn ({error}); install them with pip install 'rlprompt[label]'"
        ) from error
    from rlprompt.labelling.session import LabelSession
    from rlprompt.preferences import VoteFile, check_annotator, json_text, pairs_of_votes
    from rlprompt.preferences.annotators import PREFIX

    check_annotator(annotator)
    if annotator.startswith(PREFIX):
        raise ConfigError(f"annotator '{annotator}': names that begin with {PREFIX} are for --simulate")
    file = path or labelled.votes_folder() / f"{annotator}.jsonl"
    root = labelled.run.folder.root
    command = ["rlprompt", "label", str(root), *([] if path is None else ["--votes", str(path)])]
    facts = {
        "run": root.resolve().name,
        "annotator": annotator,
        "votes_file": str(file),
        "command": shlex.join([*command, "--export", "pairs.jsonl"]),
    }
    with listening(host, port) as listener, VoteFile(file, labelled.header(annotator)) as opened:
        session = LabelSession(queue.comparisons, opened, seed=seed, facts=facts)
        prompts = labelled.prompts()

        def pairs_text() -> str:
            found = pairs_of_votes(session.votes(), prompts).pairs
            if not found:
                raise ConfigError("no two prompts have more votes for the one than for the other yet")
            return json_text(pair.to_json() for pair in found)

        def tell(address: str) -> None:
            total = len(queue.comparisons)
            say(f"page         {address}")
            say(f"comparisons  {total} of {queue.what}, {session.num_judged} of them judged already")
            say(f"votes        {file}")
            note("Ctrl-C stops the server; every vote is on the disk before the next comparison is shown")

        serve(session, pairs_text, listener, host=host, tell=tell, browse=browse)
        say(f"judged       {session.num_judged} of {len(queue.comparisons)}")
    return 0


def _simulate(
    labelled: LabelledRun,
    queue: LabelQueue,
    name: str,
    noise: float | None,
    by: str | None,
    seed: int,
    path: Path | None,
    as_json: bool,
) -> int:
    from rlprompt.evaluation.annotators import annotator_report
    from rlprompt.preferences import VoteFile
    from rlprompt.preferences.annotators import NOISE, SimulatedAnnotator, check_score

    simulated = SimulatedAnnotator(name, NOISE if noise is None else noise, by or "reward", seed)
    check_score(simulated.by, labelled.candidates)
    file = path or labelled.votes_folder() / f"{simulated.annotator}.jsonl"
    with VoteFile(file, labelled.header(simulated.annotator, simulated.settings)) as opened:
        judged = {vote.comparison for vote in opened.votes.values()}
        opened.append(simulated.vote(entry for entry in queue.comparisons if entry.id not in judged))
        new = len(queue.comparisons) - len(judged & {entry.id for entry in queue.comparisons})
        report = annotator_report(list(opened.votes.values()), labelled.prompts())
    if as_json:
        say_json({"votes_file": str(file), "new_votes": new, **report.to_json()})
    else:
        say_table([["votes", str(file)], ["new", str(new)], *_rows(report)])
    return 0


def _export(
    run: Path, phase: str, files: list[Path], what: str | None, by: str | None, output: Path, as_json: bool
) -> int:
    from rlprompt.preferences import write_pairs

    with quiet_stdout():
        labelled = _labelled(run, phase)
        by_annotator = _votes_of(labelled, files, what)
        from rlprompt.evaluation.annotators import annotator_report, couple_reports
        from rlprompt.preferences import pairs_of_votes

        prompts = labelled.prompts()
        elected = pairs_of_votes([vote for votes in by_annotator.values() for vote in votes], prompts)
        reports = [annotator_report(votes, prompts, by=by) for votes in by_annotator.values()]
        couples = couple_reports(by_annotator)
        if elected.pairs:
            write_pairs(output, elected.pairs)
    if as_json:
        say_json(
            {
                **elected.to_json(),
                "annotators": [report.to_json() for report in reports],
                "couples": [couple.to_json() for couple in couples],
            }
        )
    else:
        _say_export(elected, reports, couples)
    if not elected.pairs:
        from rlprompt.errors import RunError

        raise RunError(
            f"no pairs, so nothing is written: {elected.num_votes} votes, {elected.num_skips} skips, "
            f"{elected.num_even} couples of prompts with as many votes for the one as for the other"
        )
    return 0


def _votes_of(labelled: LabelledRun, files: list[Path], what: str | None) -> dict[str, list[Vote]]:
    """Returns the standing votes of each annotator, those without any left out."""
    paths = files or sorted(labelled.votes_folder().glob("*.jsonl"))
    if not paths:
        raise ConfigError(f"{labelled.votes_folder()} has no votes; record some with rlprompt label RUN first")
    found: dict[str, list[Vote]] = {}
    for path in paths:
        log: VoteLog = labelled.read(path)
        votes = [vote for vote in log.votes.values() if what in (None, vote.what)]
        if not votes:
            continue
        name = votes[0].annotator
        if name in found:
            raise ConfigError(f"{path} holds votes of '{name}', as another of the files does; give each annotator once")
        found[name] = votes
    if not found:
        raise ConfigError(f"no vote stands in {', '.join(map(str, paths))}{'' if what is None else f' on {what}'}")
    return found


def _say_export(elected: Elected, reports: list[AnnotatorReport], couples: list[CoupleReport]) -> None:
    skips = f", and {elected.num_skips} skips" if elected.num_skips else ""
    say_table(
        [
            ["votes", f"{elected.num_votes}{skips}"],
            ["compared", f"{elected.num_compared} couples of prompts"],
            ["even", str(elected.num_even)],
            ["pairs", str(len(elected.pairs))],
        ]
    )
    for report in reports:
        say()
        say_table(_rows(report))
    if couples:
        say()
    for couple in couples:
        names = f"{couple.first} and {couple.second}"
        say(f"{names}: same vote on {_share(couple.same)}; Cohen's kappa {number(couple.kappa, 3)}")


def _rows(report: AnnotatorReport) -> list[list[str]]:
    rows = [
        ["annotator", report.annotator],
        ["votes", f"{report.num_votes}, {report.num_ties} of them ties; {report.num_skips} skips"],
        ["for the left", _share(report.left)],
        [f"against {report.by}", _share(report.against)],
    ]
    if report.simulated is not None:
        rows.append(["stated noise", f"{report.simulated.get('noise')}, by {report.simulated.get('by')}"])
    return rows


def _share(share: Share) -> str:
    low, high = share.interval
    interval = f" [{number(low, 3)}, {number(high, 3)}]" if share.whole else ""
    return f"{number(share.value, 3)}{interval}, {share.part} of {share.whole}"
