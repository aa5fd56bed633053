// The KV cache in float32.
const SCALED = false;
alias Quad = vec4<f32>;

fn from_cache(q: Quad) -> vec4<f32> {
  return q;
}

fn to_cache(v: vec4<f32>) -> Quad {
  return v;
}
