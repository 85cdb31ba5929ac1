# crops in a container: docker build -t crops . && docker run --rm -v "$PWD/out:/data" crops demo --out demo
FROM python:3.11-slim-bookworm
# The CPU build of torch; for a GPU: --build-arg TORCH_INDEX_URL=https://pypi.org/simple
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
# Java is for Spark alone: --build-arg JAVA=openjdk-17-jre-headless EXTRAS=demo,spark
ARG JAVA=""
ARG EXTRAS=demo,serve,milvus

# hadolint ignore=DL3008
RUN if [ -n "$JAVA" ]; then \
      apt-get update && apt-get install -y --no-install-recommends "$JAVA" procps && rm -rf /var/lib/apt/lists/*; \
    fi
WORKDIR /crops
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN pip install --no-cache-dir -c constraints.txt --index-url "$TORCH_INDEX_URL" torch
COPY src src
RUN pip install --no-cache-dir -c constraints.txt ".[$EXTRAS]" \
 && useradd --create-home --uid 1000 crops && install -d -o crops /data
USER 1000
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["crops"]
CMD ["--help"]
