// The KV cache in float16. What is beyond it is kept as its largest number: see kernels/kv_store.py.
const F16_LARGEST = 65504.0;
const SCALED = false;
alias Quad = vec2<u32>;

fn from_cache(q: Quad) -> vec4<f32> {
  return vec4<f32>(unpack2x16float(q.x), unpack2x16float(q.y));
}

fn to_cache(v: vec4<f32>) -> Quad {
  let within = clamp(v, vec4<f32>(-F16_LARGEST), vec4<f32>(F16_LARGEST));
  return vec2<u32>(pack2x16float(within.xy), pack2x16float(within.zw));
}

fn key_from_cache(q: Quad, low: u32) -> vec4<f32> {
  return from_cache(q);
}

fn key_to_cache(code: vec4<i32>) -> Quad {
  return to_cache(vec4<f32>(code));
}
