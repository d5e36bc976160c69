"""What a call costs, in US dollars: what the user says, else what ``genai-prices`` knows of a hosted model, else unknown, which is not 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from sharpen.policies.choose import Engine, batch_of
from sharpen.policies.endpoint import Endpoint
from sharpen.policies.plugin import PolicyPlugin
from sharpen.records import Model, Record

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PROBE = 1000  # tokens whose price is asked for: small, so that the price for short contexts is taken where longer ones cost more


class Price(Record, frozen=True, kw_only=True):
    """US dollars for a million ``prompt`` tokens and for a million ``sampled`` ones."""

    prompt: Annotated[float, msgspec.Meta(ge=0)]
    sampled: Annotated[float, msgspec.Meta(ge=0)]

    def dollars(self, prompt_tokens: int, sampled_tokens: int) -> float:
        return (self.prompt * prompt_tokens + self.sampled * sampled_tokens) / 1e6


FREE = Price(prompt=0.0, sampled=0.0)


def price_of(model: Model, engine: Engine, prices: Mapping[str, Price]) -> tuple[Price | None, str]:
    """The price of ``model`` on ``engine``, None where nobody knows it; and in a few words where it comes from.

    ``prices`` are the user's own, by the name that the model is asked for. Where ``engine`` asks in batches, its share of the price is taken. Cache
    and volume discounts are not taken off.
    """
    price, why = _of_one(model, engine, prices)
    if price is None or price == FREE or (batch := batch_of(engine)) is None:
        return price, why
    return Price(prompt=price.prompt * batch.price, sampled=price.sampled * batch.price), f"{why}, times engine.batch.price {batch.price:g}"


def _of_one(model: Model, engine: Engine, prices: Mapping[str, Price]) -> tuple[Price | None, str]:
    """The price of a request that is asked by itself."""
    served = isinstance(engine, Endpoint) or model.kind == "endpoint"
    name = (engine.model if isinstance(engine, Endpoint) else "") or model.name
    if (own := prices.get(name)) is not None:
        return own, "as set in spending.prices"
    if isinstance(engine, PolicyPlugin):
        return None, f"unknown: what plugin {engine.name} costs, only you can say, in spending.prices.{name}"
    if not served:
        return FREE, "no price for a token: it runs on this machine"
    url = (engine.urls if isinstance(engine, Endpoint) else ())[:1] or (model.path,)
    if urlsplit(url[0]).hostname in _LOOPBACK:
        return FREE, "no price for a token: the server is on this machine"
    try:
        return _listed(name, url[0])
    except ImportError:
        return None, f"unknown: genai-prices is not installed (sharpen[prices]); or set spending.prices.{name}"
    except LookupError:
        return None, f"unknown: genai-prices has none for {name} at {urlsplit(url[0]).hostname}; set spending.prices.{name}"


def _listed(name: str, url: str) -> tuple[Price, str]:
    """The list price. LookupError where the list has none."""
    import genai_prices
    from genai_prices import Usage, calc_price

    per_million = 1e6 / _PROBE
    found = calc_price(Usage(input_tokens=_PROBE, output_tokens=_PROBE), name, provider_api_url=url)
    price = Price(prompt=float(found.input_price) * per_million, sampled=float(found.output_price) * per_million)
    return price, f"{found.provider.id}'s list price of {found.model.id}, by genai-prices {genai_prices.__version__}"
