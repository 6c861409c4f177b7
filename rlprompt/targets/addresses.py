"""Where API targets are, and through which proxy they are reached."""

from __future__ import annotations

import urllib.request

import httpx

from rlprompt.errors import ConfigError

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


def check_base_url(base_url: str) -> str:
    """Returns the base URL without a trailing slash; raises ConfigError for one that is not usable."""
    problem = ""
    try:
        url = httpx.URL(base_url)
        url.host.encode("idna")
    except (httpx.InvalidURL, TypeError, ValueError):
        problem = "is not a URL"
    else:
        if url.scheme not in ("http", "https") or not url.host:
            problem = "must begin with http:// or https:// and name a host"
        elif url.userinfo or url.query or url.fragment:
            problem = "must hold no user, password, query or fragment"
    if problem:  # the URL itself is not repeated: it may hold a key
        raise ConfigError(f"base_url {problem}; give it like http://localhost:8000/v1 and the key by api_key_env")
    return base_url.rstrip("/")


def proxy_for(base_url: str) -> str | None:
    """Returns the proxy that the environment names for a server; None for none. This machine is never behind one.

    Raises:
        ConfigError: it is one of a kind that is not supported: the request would go past it.
    """
    url = httpx.URL(base_url)
    if url.host in LOCAL_HOSTS or urllib.request.proxy_bypass(url.host):
        return None
    known = urllib.request.getproxies()
    proxy = known.get(url.scheme) or known.get("all")
    if proxy is None or proxy.startswith("http://"):
        return proxy
    if "://" not in proxy:
        return f"http://{proxy}"
    raise ConfigError(
        f"the environment names a proxy of kind {proxy.partition('://')[0]}, but only http:// proxies are supported; "
        f"set {url.scheme.upper()}_PROXY to one, or name the server in NO_PROXY"
    )
