"""mail preview, mail suppressed: what mails look like, and to which addresses none goes."""

from __future__ import annotations

from pathlib import Path

import click

from procjobs.cli.database import call, database_options, load_settings
from procjobs.cli.output import Column, json_option, print_json, print_table, text, when
from procjobs.logs import one_line

__all__ = ["preview", "suppressed"]

_SUPPRESSED: tuple[Column, ...] = (
    ("address", "address", text),
    ("since", "since", when),
    ("reason", "reason", text),
    ("code", "code", text),
    ("reply", "reply", text),
    ("by", "added_by", text),
)


@click.command(short_help="Show what a mail looks like.")
@click.argument("template", required=False)
@click.option("--html", "form", flag_value="html", help="Print the HTML.")
@click.option("--text", "form", flag_value="text", default="text", help="Print subject and text.  [default]")
@click.option("--json", "form", flag_value="json", help="Print subject, text and HTML as JSON.")
@click.option("--to", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write there instead.")
def preview(template: str | None, form: str, to: Path | None) -> None:
    """Show what the mail TEMPLATE looks like, filled with its sample; without TEMPLATE, list them."""
    import json
    from dataclasses import asdict

    from procjobs.errors import ProcjobsError
    from procjobs.letters import Brand, templates
    from procjobs.packs.notifications import preview as preview_of

    brand = Brand.of(load_settings())
    if template is None:
        rows = [{"template": name, "subject": preview_of(name, brand).subject} for name in templates()]
        if form == "json":
            print_json(rows)
        else:
            print_table(rows, (("template", "template", text), ("subject", "subject", text)), empty="")
        return
    if template not in templates():
        raise ProcjobsError(f"there is no template {one_line(template)}", hint="`procjobs mail preview` lists them")
    letter = preview_of(template, brand)
    if form == "html":
        shown = letter.html
    elif form == "json":
        shown = json.dumps(asdict(letter), ensure_ascii=False, indent=2)
    else:
        shown = f"Subject: {letter.subject}\n\n{letter.text}"
    if to is None:
        click.echo(shown.rstrip("\n"))
        return
    try:
        to.write_text(shown, encoding="utf-8")
    except OSError as error:
        raise ProcjobsError(f"{to} cannot be written: {error.strerror}") from error
    click.echo(f"wrote {to}")


limit_option = click.option(
    "--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="How many at most."
)
matching_option = click.option("--matching", metavar="TEXT", help="Only addresses with this in them.")


@click.group(invoke_without_command=True, short_help="Addresses to which no mail goes.")
@matching_option
@limit_option
@json_option
@database_options
@click.pass_context
def suppressed(
    context: click.Context, /, matching: str | None, limit: int, as_json: bool, dsn: str | None, data: str | None
) -> None:
    """List the addresses to which no mail goes, since they do not exist; add and remove one."""
    if context.invoked_subcommand is None:
        _list(matching, limit, as_json, dsn, data)


@suppressed.command("list")
@matching_option
@limit_option
@json_option
@database_options
def list_suppressed(matching: str | None, limit: int, as_json: bool, dsn: str | None, data: str | None) -> None:
    """The addresses, those that were suppressed last first."""
    _list(matching, limit, as_json, dsn, data)


def _list(matching: str | None, limit: int, as_json: bool, dsn: str | None, data: str | None) -> None:
    found = call(dsn, data, "list_suppressed_addresses", matching=matching, max_rows=limit)
    if as_json:
        print_json(found)
    else:
        print_table(found, _SUPPRESSED, empty="No address is suppressed.")


@suppressed.command()
@click.argument("address")
@click.option("--reason", default="added by hand", show_default=True, help="Why.")
@database_options
def add(address: str, reason: str, dsn: str | None, data: str | None) -> None:
    """Send no mail to ADDRESS any more."""
    (row,) = call(dsn, data, "suppress_address", address=address, reason=reason)
    said = "is suppressed" if row["suppress_address"] else "was suppressed already"
    click.echo(f"{one_line(address)} {said}")


@suppressed.command()
@click.argument("address")
@database_options
def remove(address: str, dsn: str | None, data: str | None) -> None:
    """Send mail to ADDRESS again."""
    (row,) = call(dsn, data, "unsuppress_address", address=address)
    said = "gets mail again" if row["unsuppress_address"] else "was not suppressed"
    click.echo(f"{one_line(address)} {said}")
