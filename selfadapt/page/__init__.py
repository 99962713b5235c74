"""A page to play with: ask, and see who answers and why. This part of the package needs Gradio (extra `page`).

`application.py` puts the tabs together, and `mounting.py` makes them an application for a server. Each tab is a file:
its controls, what they do, and the HTML that it shows. Answers come from what also serves OpenAI's clients
(`selfadapt.serving.served`).
"""
