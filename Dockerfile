# For NVIDIA GPUs, with vLLM:   docker build -t plumbline .
# For CPUs:                     docker build -t plumbline --build-arg DEVICE=cpu --build-arg TORCH_INDEX=... .
# TORCH_INDEX is the address of torch's wheels for CPUs (its install page has it). Without it torch comes with CUDA's libraries, which
# works on a CPU too and takes some GB.
FROM python:3.11-slim
ARG DEVICE=cuda
ARG TORCH_INDEX=

# For the compiled parts of the embedded engine; Triton compiles a launcher of each kernel on the machine that runs it.
RUN apt-get update && apt-get install -y --no-install-recommends g++ libc6-dev && rm -rf /var/lib/apt/lists/*

WORKDIR /plumbline
COPY . .
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch<=2.13.0"; fi
RUN if [ "$DEVICE" = cuda ]; then pip install --no-cache-dir -e ".[vllm,qlora]"; else pip install --no-cache-dir -e .; fi

CMD ["plumbline", "doctor"]
