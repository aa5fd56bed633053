// out (T, ROWS) = W @ x + bias, or out += ... with ADDING; x (T, 32 * BLOCKS), or norm(x): see normed.wgsl.
struct Part { first_group: u32 }  // of the rows that `codes` and `scales` hold

@group(0) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> scales: array<u32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
@group(0) @binding(5) var<uniform> batch: Batch;
@group(0) @binding(6) var<uniform> part: Part;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let first = id.y * M;
  var rows: array<u32, M>;
  for (var m = 0u; m < M; m++) {
    rows[m] = min(first + m, batch.tokens - 1u) * 8u * BLOCKS;
  }
  multiply(id.x * BLOCKS * CODE_VECTORS, id.x * BLOCKS * SCALE_WORDS, rows, thread);
  let factor = norm_factor(thread);
  let m = thread / 8u;
  let token = first + m;
  if (m < M && token < batch.tokens) {
    let row = 8u * (part.first_group + id.x) + thread % 8u;
    var value = products[m * THREADS + thread % 8u / 4u][thread % 4u] * factor;
    if (BIASED) {
      value += bias[row];
    }
    if (ADDING) {
      value += out[token * ROWS + row];
    }
    out[token * ROWS + row] = value;
  }
}
