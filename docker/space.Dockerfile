# The page of `selfadapt play`, for a Hugging Face Space of the kind Docker (docs/playground.md), or at home:
#     docker build -f docker/space.Dockerfile -t selfadapt:page .
#     docker run --rm -p 7860:7860 selfadapt:page
FROM python:3.11-slim
# A Space runs as user 1000.
RUN useradd --create-home --uid 1000 user
WORKDIR /src
COPY . .
# PyTorch's own index has builds without CUDA; everything else comes from the usual one.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "$(grep ^torch== constraints.txt)" \
    && pip install --no-cache-dir -c constraints.txt ".[page]"
USER user
WORKDIR /home/user
# The base, and the decompositions of its matrices, are in the image.
RUN selfadapt generate "There are 6 boxes with 7 eggs in each. How many eggs are there in all?" --max-new-tokens 16
EXPOSE 7860
ENTRYPOINT ["selfadapt", "play", "--host", "0.0.0.0"]
