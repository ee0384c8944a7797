"""The packs: what procjobs can do for an application, each on the engine and the host bindings, none on another."""

from __future__ import annotations

from procrastinate import Blueprint

__all__ = ["blueprints"]


def blueprints() -> list[Blueprint]:
    """The tasks of every pack, for `procjobs.app.default_app`."""
    from procjobs.packs import notifications, retention

    return [notifications.blueprint, retention.blueprint]
