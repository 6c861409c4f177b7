"""A hook for LiteLLM's proxy that has texts rewritten by `rlprompt serve`.

Copy this file beside LiteLLM's configuration, and name it there: `litellm_settings: {callbacks:
litellm_hook.proxy_handler_instance}`. It needs nothing but LiteLLM. RLPROMPT_SERVE_URL is the address of the server
(http://127.0.0.1:8800), RLPROMPT_API_KEY one of its keys, RLPROMPT_DEADLINE_S the seconds that a request waits (10).
Where there is no rewrite, for whatever reason, the request goes on as it came.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import httpx
from litellm.integrations.custom_logger import CustomLogger

logger = logging.getLogger("rlprompt.litellm")


class RewriteHook(CustomLogger):
    """Rewrites the last user text of chat completions, before LiteLLM chooses a deployment."""

    def __init__(self) -> None:
        super().__init__()
        self._url = os.environ.get("RLPROMPT_SERVE_URL", "http://127.0.0.1:8800").rstrip("/") + "/rewrite"
        key = os.environ.get("RLPROMPT_API_KEY", "").split(",")[0].strip()
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._deadline_s = float(os.environ.get("RLPROMPT_DEADLINE_S", "10"))
        self._client: httpx.AsyncClient | None = None

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any]:
        """Returns the request with the text rewritten, or as it came."""
        if call_type not in ("completion", "acompletion"):
            return data
        found = _text(data.get("messages"))
        if found is None:
            return data
        place, text = found
        try:
            rewrite = await self._ask(text, data.get("model"))
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            logger.warning("the text is not rewritten: %s", type(error).__name__)
            return data
        if rewrite is not None:
            messages = [*data["messages"]]
            messages[place] = {**messages[place], "content": rewrite}
            data["messages"] = messages
        return data

    async def _ask(self, text: str, model: Any) -> str | None:
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=self._deadline_s, trust_env=False)
        body = {"text": text, **({"model": model} if isinstance(model, str) else {})}
        reply = await self._client.post(self._url, json=body, headers=self._headers)
        reply.raise_for_status()
        values = reply.json()
        return str(values["text"]) if values["rewritten"] == "1" else None


def _text(messages: Any) -> tuple[int, str] | None:
    """Returns the place of the last message of the user and its text, where it has just one."""
    if not isinstance(messages, list):
        return None
    for place in reversed(range(len(messages))):
        message = messages[place]
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            return (place, content) if isinstance(content, str) else None
    return None


proxy_handler_instance = RewriteHook()
