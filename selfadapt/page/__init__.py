"""A page to play with: one asks, and sees who answers and why; a part of the package that needs Gradio (extra `page`).

`application.py` puts the tabs together, and `running.py` serves them. A tab is a file: its controls, what they do, and
the HTML that it shows. Answers come from what serves OpenAI's clients, too (`selfadapt.serving.served`).
"""
