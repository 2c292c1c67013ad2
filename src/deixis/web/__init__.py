"""The web page: drop a film, write what to look for, and see where and when it is. Needs the extra ``web`` (Gradio)."""
