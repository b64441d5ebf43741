"""The page that shows a run while it goes on. It loads nothing from elsewhere."""

import secrets

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

TEMPLATES = ChoiceLoader([PackageLoader("iris_ray.gateway"), PackageLoader("iris_ray.report")])


def live_page(run: str) -> tuple[str, str]:
    """The page as HTML, and the policy that a browser must hold it to."""
    nonce = secrets.token_urlsafe()
    environment = Environment(loader=TEMPLATES, autoescape=True, undefined=StrictUndefined)
    # What models wrote is shown here: even if it got through as HTML, nothing runs and nothing is loaded.
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("live.html").render(run=run, nonce=nonce), policy
