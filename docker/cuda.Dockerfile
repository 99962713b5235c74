# selfadapt on a GPU, with vLLM. CUDA's libraries come with torch's wheels; the host has the driver and NVIDIA's container
# toolkit.
#     docker build -f docker/cuda.Dockerfile -t selfadapt:cuda .
#     docker run --rm --gpus all -v selfadapt-cache:/home/user/.cache selfadapt:cuda generate "…" --engine vllm
FROM python:3.11-slim
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Triton compiles its kernels with a C compiler.
RUN apt-get update \
    && apt-get install --no-install-recommends --yes gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home user
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir ".[vllm,embedding,eval]"
USER user
# The cache is the user's, in a volume too.
RUN mkdir -p /home/user/.cache
WORKDIR /home/user
EXPOSE 8000
ENTRYPOINT ["selfadapt"]
CMD ["--help"]
