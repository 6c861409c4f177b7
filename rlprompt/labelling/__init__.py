"""The page on which people vote, and the local server behind it; needs the extra `label` (FastAPI, uvicorn)."""
