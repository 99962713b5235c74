# selfadapt on CPUs:
#     docker build -f docker/cpu.Dockerfile -t selfadapt:cpu .
#     docker run --rm -v selfadapt-cache:/home/user/.cache selfadapt:cpu generate "What is the capital of France?"
FROM python:3.11-slim
# PyTorch's own index has builds without CUDA; everything else comes from the usual one.
RUN useradd --create-home user
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "$(grep ^torch== constraints.txt)" \
    && pip install --no-cache-dir -c constraints.txt ".[embedding,eval]"
USER user
# The cache is the user's, in a volume too.
RUN mkdir -p /home/user/.cache
WORKDIR /home/user
EXPOSE 8000
ENTRYPOINT ["selfadapt"]
CMD ["--help"]
