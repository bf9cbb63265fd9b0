"""How long an app's services wait at a boot for those of the apps they come after."""

from __future__ import annotations

from bootagent.config.model import App, Config, Service
from bootagent.services import boot_order


def before(config: Config, app: App) -> float:
    """The seconds that all of them may take to start, one app after the other."""
    apps = [one for one in config.apps if one.name in app.after]
    return max((before(config, one) + _takes(one) for one in apps), default=0.0)


def _takes(app: App) -> float:
    """The longest way through an app's services; it may bring some that nobody has named."""
    within = {f"{app.name}.{one.name}": _within(one) for one in (app.unnamed, *app.services)}
    waits = boot_order.waits(within, {f"{app.name}.{one.name}": one.after for one in app.services})
    return max(waits[name] + within[name] for name in within)


def _within(service: Service) -> float:
    return boot_order.start_within(service.check.within, service.stable_for)
