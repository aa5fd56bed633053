// The KV cache in float16.
const SCALED = false;
alias Quad = vec2<u32>;

fn from_cache(q: Quad) -> vec4<f32> {
  return vec4<f32>(unpack2x16float(q.x), unpack2x16float(q.y));
}

fn to_cache(v: vec4<f32>) -> Quad {
  return vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));
}
