"""`enclave trust`: the publishers' keys that this user has pinned."""

import click
import msgspec

from enclave_parent_gateway.publisher_pins import PublisherPins
from enclave_parent_gateway.runtime_dir import EnclavePaths
from enclave_protocol.plain_text import plain_text

__all__ = ["trust"]


@click.command(
    epilog="\b\nExamples:\n"
    "  enclave trust                                  # lists them\n"
    '  enclave trust "ACME Analytics" 3f2a...         # accepts this key from now on\n'
    '  enclave trust --remove "ACME Analytics"        # the next key it is met with is new'
)
@click.argument("publisher", required=False)
@click.argument("fingerprint", required=False)
@click.option("--remove", is_flag=True, help="Forget PUBLISHER's key.")
@click.option("--json", "as_json", is_flag=True, help="List for scripts.")
def trust(publisher: str | None, fingerprint: str | None, remove: bool, as_json: bool) -> None:
    """Accept PUBLISHER's key with this FINGERPRINT; without arguments, list accepted keys.

    The first package of a publisher pins its key. A package of the same publisher signed with
    another key is refused until you accept that here: compare the fingerprint with one that the
    publisher told you in another way than with the package.
    """
    paths = EnclavePaths.from_environment()
    paths.require_own("sudo -u enclave enclave trust ...")
    pins = PublisherPins(paths)
    if publisher is None:
        if remove:
            raise click.UsageError("--remove needs a PUBLISHER; `enclave trust` lists them")
        _list(pins, as_json=as_json)
    elif as_json:
        raise click.UsageError("--json lists: leave out PUBLISHER")
    elif remove:
        if fingerprint is not None:
            raise click.UsageError("--remove takes a PUBLISHER only")
        if not pins.remove(publisher):
            raise click.ClickException(f"no key of {publisher!r} is pinned; see: enclave trust")
        click.echo(f"Forgot the key of {plain_text(publisher)}; the next one it uses is new.")
    elif fingerprint is None:
        raise click.UsageError("give the FINGERPRINT, too: 64 hex digits")
    else:
        found = fingerprint.strip().lower().replace(":", "")
        former = pins.trust(publisher, found)
        click.echo(f"Pinned {plain_text(publisher)} with key {found}.")
        if former and former != found:
            click.echo(f"The former key was {former}.")


def _list(pins: PublisherPins, *, as_json: bool) -> None:
    found = pins.all()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)))
        return
    if not found:
        click.echo("No publisher's key is pinned; the first signed package pins its publisher's.")
    for pin in found:
        name = plain_text(pin.publisher)
        click.echo(f"{pin.fingerprint}  {name}  ({plain_text(pin.how)}, {plain_text(pin.since)})")
