// A pickle is a program for a stack machine. This machine has no opcode that does anything but build values: they lie
// in one array and refer to each other by number, so depth, sharing and cycles cost nothing and need no recursion.
#include "datasets/pickle.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "datasets/files.h"

namespace heed {
namespace {

struct TypeName {
  std::string_view module, name;
  Pickle::Type type;
};
// Older and newer releases name the same type by different modules.
constexpr std::array<TypeName, 11> kTypes{{{"numpy.core.multiarray", "_reconstruct", Pickle::Type::reconstruct},
                                           {"numpy._core.multiarray", "_reconstruct", Pickle::Type::reconstruct},
                                           {"numpy", "ndarray", Pickle::Type::ndarray},
                                           {"numpy", "dtype", Pickle::Type::dtype},
                                           {"scipy.sparse.csr", "csr_matrix", Pickle::Type::csr_matrix},
                                           {"scipy.sparse._csr", "csr_matrix", Pickle::Type::csr_matrix},
                                           {"scipy.sparse._csr", "csr_array", Pickle::Type::csr_matrix},
                                           {"scipy.sparse", "csr_matrix", Pickle::Type::csr_matrix},
                                           {"__builtin__", "list", Pickle::Type::list},
                                           {"builtins", "list", Pickle::Type::list},
                                           {"collections", "defaultdict", Pickle::Type::defaultdict}}};

constexpr std::array<const char*, 10> kKinds{"None",   "a truth value", "an integer",   "a number", "a string",
                                             "a list", "a tuple",       "a dictionary", "a type",   "an object"};

}  // namespace

// The stack machine of pickles. It knows the opcodes that data is written in and no other.
class PickleMachine {
 public:
  using Ref = Pickle::Ref;
  using Kind = Pickle::Kind;
  using Value = Pickle::Value;

  explicit PickleMachine(Pickle& out) : out_(out), in_(*out.bytes_) {}

  void run() {
    while (step()) {
    }
    if (stack_.size() != 1 || !marks_.empty())
      stop("ends with " + std::to_string(stack_.size()) + " values and " + std::to_string(marks_.size()) +
           " open marks, not with one value");
    if (at_ != in_.size()) stop("ends here, but " + std::to_string(in_.size() - at_) + " bytes follow");
    out_.root_ = stack_[0];
  }

 private:
  [[noreturn]] void stop(const std::string& what) const {
    fail(out_.file_ + ", byte " + std::to_string(op_at_) + ": " + what);
  }

  std::string_view take(std::uint64_t n) {
    std::uint64_t left = in_.size() - at_;
    if (n > left) stop("claims " + std::to_string(n) + " bytes, but " + std::to_string(left) + " are left");
    at_ += n;
    return in_.substr(at_ - n, n);
  }
  std::uint64_t number(int bytes) {  // little-endian, unsigned
    std::uint64_t x = 0;
    for (char c : take(bytes)) x = x >> 8 | static_cast<std::uint64_t>(static_cast<unsigned char>(c)) << 56;
    return x >> (64 - 8 * bytes);
  }
  std::string_view line() {
    std::size_t end = in_.find('\n', at_);
    if (end == std::string_view::npos) stop("a name has no end");
    std::string_view text = take(end - at_);
    ++at_;
    return text;
  }

  Value& push(Kind kind) {
    if (out_.values_.size() >= Pickle::kNone) stop("there are more than 2^32 values");
    stack_.push_back(static_cast<Ref>(out_.values_.size()));
    Value& v = out_.values_.emplace_back();
    v.kind = kind;
    v.at = op_at_;
    return v;
  }
  std::size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  Ref top() const {
    if (stack_.size() <= floor()) stop("a value is missing on the stack");
    return stack_.back();
  }
  Ref pop() {
    Ref r = top();
    stack_.pop_back();
    return r;
  }
  std::vector<Ref> pop(std::size_t n) {
    if (stack_.size() - floor() < n) stop("a value is missing on the stack");
    std::vector<Ref> out(stack_.end() - static_cast<std::ptrdiff_t>(n), stack_.end());
    stack_.resize(stack_.size() - n);
    return out;
  }
  std::vector<Ref> pop_mark() {
    if (marks_.empty()) stop("a mark is missing on the stack");
    auto out = pop(stack_.size() - marks_.back());
    marks_.pop_back();
    return out;
  }
  // The list, dict or defaultdict on top of the stack gets items.
  void add(bool pairs, const std::vector<Ref>& items) {
    Value& to = out_.values_[top()];
    bool list = to.kind == Kind::list;
    bool dict = to.kind == Kind::dict || (to.kind == Kind::object && to.type == Pickle::Type::defaultdict);
    if (pairs ? !dict : !list)
      stop(std::string(pairs ? "keys and values are set in " : "items are appended to ") +
           kKinds[static_cast<int>(to.kind)]);
    if (pairs && items.size() % 2 != 0) stop("a key has no value");
    to.items.insert(to.items.end(), items.begin(), items.end());
  }
  void remember(std::uint64_t key) {
    // Pickles number what they remember from 0 on, so no number is beyond their length.
    if (key > in_.size())
      stop("remembers a value as number " + std::to_string(key) + " in " + std::to_string(in_.size()) + " bytes");
    Ref r = top();
    if (memo_.size() <= key) memo_.resize(key + 1, Pickle::kNone);
    memo_[key] = r;
    memo_count_ = std::max(memo_count_, key + 1);
  }
  void recall(std::uint64_t key) {
    if (key >= memo_.size() || memo_[key] == Pickle::kNone)
      stop("recalls value number " + std::to_string(key) + ", which was never remembered");
    stack_.push_back(memo_[key]);
  }
  void type(std::string_view module, std::string_view name) {
    for (const auto& known : kTypes)
      if (known.module == module && known.name == name) {
        push(Kind::type).type = known.type;
        return;
      }
    stop("names " + printable(module) + "." + printable(name) + ", which is not a type of data; nothing was run");
  }
  void make() {  // an object, from the type and the arguments on the stack
    Ref args = pop();
    Ref maker = pop();
    if (out_.values_[maker].kind != Kind::type || out_.values_[args].kind != Kind::tuple)
      stop("makes an object from " + std::string(kKinds[static_cast<int>(out_.values_[maker].kind)]) + " and " +
           kKinds[static_cast<int>(out_.values_[args].kind)]);
    Pickle::Type type = out_.values_[maker].type;
    Value& v = push(Kind::object);
    v.type = type;
    v.args = args;
  }
  void integer(std::int64_t x) { push(Kind::integer).integer = x; }
  void long_integer(std::uint64_t bytes) {
    if (bytes > 8) stop("an integer of " + std::to_string(bytes) + " bytes is too long");
    if (bytes == 0) return integer(0);
    int shift = 64 - 8 * static_cast<int>(bytes);
    integer(static_cast<std::int64_t>(number(static_cast<int>(bytes)) << shift) >> shift);
  }
  void string(std::uint64_t bytes) {
    auto text = take(bytes);
    push(Kind::string).string = text;
  }
  void collect(Kind kind, std::vector<Ref> items) {
    if (kind == Kind::dict && items.size() % 2 != 0) stop("a key has no value");
    push(kind).items = std::move(items);
  }

  bool step() {  // false: the pickle has ended
    op_at_ = at_;
    if (at_ == in_.size()) stop("the file ends before the pickle does");
    auto op = static_cast<unsigned char>(in_[at_++]);
    switch (op) {
      case '.':
        return false;
      case 0x80:  // PROTO
        if (auto version = number(1); version < 2 || version > 4)
          stop("protocol " + std::to_string(version) + "; protocols 2 to 4 are read");
        break;
      case 0x95:  // FRAME: only a hint, but it must not lie
        if (auto n = number(8); n > in_.size() - at_)
          stop("claims " + std::to_string(n) + " bytes, but " + std::to_string(in_.size() - at_) + " are left");
        break;
      case 'N':
        push(Kind::none);
        break;
      case 0x88:  // NEWTRUE
      case 0x89:  // NEWFALSE
        push(Kind::boolean).integer = op == 0x88;
        break;
      case 'J':  // BININT
        integer(static_cast<std::int32_t>(number(4)));
        break;
      case 'K':  // BININT1
        integer(static_cast<std::int64_t>(number(1)));
        break;
      case 'M':  // BININT2
        integer(static_cast<std::int64_t>(number(2)));
        break;
      case 0x8a:  // LONG1
        long_integer(number(1));
        break;
      case 0x8b:  // LONG4
        long_integer(number(4));
        break;
      case 'G':  // BINFLOAT, big-endian
        push(Kind::real).real = std::bit_cast<double>(__builtin_bswap64(number(8)));
        break;
      case 'U':   // SHORT_BINSTRING
      case 'C':   // SHORT_BINBYTES
      case 0x8c:  // SHORT_BINUNICODE
        string(number(1));
        break;
      case 'T':  // BINSTRING, whose length is signed: a negative one is beyond any file
      case 'B':  // BINBYTES
      case 'X':  // BINUNICODE
        string(number(4));
        break;
      case 0x8d:  // BINUNICODE8
      case 0x8e:  // BINBYTES8
        string(number(8));
        break;
      case '(':
        marks_.push_back(stack_.size());
        break;
      case ')':
        push(Kind::tuple);
        break;
      case 0x85:  // TUPLE1
      case 0x86:  // TUPLE2
      case 0x87:  // TUPLE3
        collect(Kind::tuple, pop(op - 0x84u));
        break;
      case 't':
        collect(Kind::tuple, pop_mark());
        break;
      case ']':
        push(Kind::list);
        break;
      case 'l':
        collect(Kind::list, pop_mark());
        break;
      case '}':
        push(Kind::dict);
        break;
      case 'd':
        collect(Kind::dict, pop_mark());
        break;
      case 'a':  // APPEND
        add(false, pop(1));
        break;
      case 'e':  // APPENDS
        add(false, pop_mark());
        break;
      case 's':  // SETITEM
        add(true, pop(2));
        break;
      case 'u':  // SETITEMS
        add(true, pop_mark());
        break;
      case '0':  // POP
        pop();
        break;
      case '1':  // POP_MARK
        pop_mark();
        break;
      case '2':  // DUP
        stack_.push_back(top());
        break;
      case 'q':  // BINPUT
        remember(number(1));
        break;
      case 'r':  // LONG_BINPUT
        remember(number(4));
        break;
      case 0x94:  // MEMOIZE
        remember(memo_count_);
        break;
      case 'h':  // BINGET
        recall(number(1));
        break;
      case 'j':  // LONG_BINGET
        recall(number(4));
        break;
      case 'c': {  // GLOBAL
        auto module = line();
        type(module, line());
        break;
      }
      case 0x93: {  // STACK_GLOBAL
        auto name = out_.string(pop());
        type(out_.string(pop()), name);
        break;
      }
      case 'R':   // REDUCE
      case 0x81:  // NEWOBJ
        make();
        break;
      case 'b': {  // BUILD
        Ref state = pop();
        Value& object = out_.values_[top()];
        if (object.kind != Kind::object) stop("gives a state to " + std::string(kKinds[static_cast<int>(object.kind)]));
        object.state = state;
        break;
      }
      default: {
        constexpr char digits[] = "0123456789abcdef";
        stop(std::string("opcode 0x") + digits[op >> 4] + digits[op & 15] + " is not one that data is written in");
      }
    }
    return true;
  }

  Pickle& out_;
  std::string_view in_;
  std::size_t at_ = 0;     // the next byte
  std::size_t op_at_ = 0;  // the byte of the current opcode
  std::vector<Ref> stack_;
  std::vector<std::size_t> marks_;  // heights of the stack
  std::vector<Ref> memo_;
  std::uint64_t memo_count_ = 0;
};

Pickle::Pickle(std::string bytes, std::string file)
    : bytes_(std::make_shared<const std::string>(std::move(bytes))), file_(std::move(file)) {
  PickleMachine(*this).run();
}

Pickle Pickle::read(const std::filesystem::path& path) { return {read_file(path), path.string()}; }

std::string Pickle::place(Ref r) const { return file_ + ", byte " + std::to_string(values_[r].at); }

void Pickle::expected(Ref r, const char* what) const {
  fail(place(r) + ": expected " + what + ", found " + kKinds[static_cast<int>(values_[r].kind)]);
}

std::int64_t Pickle::integer(Ref r) const {
  if (values_[r].kind != Kind::integer) expected(r, "an integer");
  return values_[r].integer;
}

std::string_view Pickle::string(Ref r) const {
  if (values_[r].kind != Kind::string) expected(r, "a string");
  return values_[r].string;
}

std::span<const Pickle::Ref> Pickle::list(Ref r) const {
  if (values_[r].kind != Kind::list) expected(r, "a list");
  return values_[r].items;
}

std::span<const Pickle::Ref> Pickle::dict(Ref r) const {
  const Value& v = values_[r];
  if (v.kind != Kind::dict && !(v.kind == Kind::object && v.type == Type::defaultdict)) expected(r, "a dictionary");
  return v.items;
}

std::span<const Pickle::Ref> Pickle::tuple(Ref r, std::size_t size) const {
  if (values_[r].kind != Kind::tuple) expected(r, "a tuple");
  if (values_[r].items.size() != size)
    fail(place(r) + ": expected a tuple of " + std::to_string(size) + ", found one of " +
         std::to_string(values_[r].items.size()));
  return values_[r].items;
}

Pickle::Ref Pickle::field(Ref r, std::string_view key) const {
  auto items = dict(r);
  Ref found = kNone;  // of a repeated key the last value counts, as in Python
  for (std::size_t i = 0; i < items.size(); i += 2)
    if (values_[items[i]].kind == Kind::string && values_[items[i]].string == key) found = items[i + 1];
  if (found == kNone) fail(place(r) + ": the dictionary has no '" + std::string(key) + "'");
  return found;
}

std::vector<Offset> Pickle::shape(Ref r) const {
  if (values_[r].kind != Kind::tuple) expected(r, "a tuple");
  const auto& items = values_[r].items;
  if (items.size() > 32) fail(place(r) + ": an array of " + std::to_string(items.size()) + " dimensions");
  std::vector<Offset> out;
  for (Ref item : items) out.push_back(integer(item));
  return out;
}

// dtype('i4', align, copy) with the state (version, '<', subarray, names, fields, size, alignment, flags).
std::string Pickle::dtype(Ref r) const {
  const Value& v = values_[r];
  if (v.kind != Kind::object || v.type != Type::dtype) expected(r, "a numpy.dtype");
  const auto& args = values_[v.args].items;
  if (args.empty()) fail(place(r) + ": a numpy.dtype without a name");
  std::string_view order;
  if (v.state != kNone) {
    if (values_[v.state].kind != Kind::tuple) expected(v.state, "the state of a numpy.dtype");
    const auto& state = values_[v.state].items;
    if (state.size() < 5) expected(v.state, "the state of a numpy.dtype");
    order = string(state[1]);
    for (int i : {2, 3, 4})
      if (values_[state[i]].kind != Kind::none) fail(place(r) + ": arrays of records are not read");
  }
  return std::string(order) + std::string(string(args[0]));
}

// _reconstruct(ndarray, (0,), 'b') with the state (version, shape, dtype, fortran_order, bytes).
Array Pickle::array(Ref r) const {
  const Value& v = values_[r];
  if (v.kind != Kind::object || v.type != Type::reconstruct || v.state == kNone) expected(r, "a numpy.ndarray");
  const Value& args = values_[v.args];
  if (args.items.empty() || values_[args.items[0]].kind != Kind::type || values_[args.items[0]].type != Type::ndarray)
    expected(r, "a numpy.ndarray");
  auto state = tuple(v.state, 5);
  Array out{.name = place(r), .descr = dtype(state[2]), .shape = shape(state[1]), .bytes = {}};
  out.dtype = dtype_of(out.descr);
  if (out.dtype == Dtype::object) fail(out.name + ": holds Python objects, which are never read");
  if (bytes_of(out.dtype) == 0) fail(out.name + ": elements of type " + printable(out.descr) + " are not read");
  if (values_[state[3]].kind != Kind::boolean && values_[state[3]].kind != Kind::integer)
    expected(state[3], "the order of an array");
  out.fortran_order = values_[state[3]].integer != 0;
  std::string_view data = string(state[4]);
  Offset bytes = bytes_of(out.name, out.dtype, out.shape);
  if (bytes != static_cast<Offset>(data.size()))
    fail(out.name + ": " + shape_text(out.shape) + " of type " + printable(out.descr) + " take " +
         std::to_string(bytes) + " bytes, but " + std::to_string(data.size()) + " are stored");
  out.bytes.resize(data.size());
  if (!data.empty()) std::memcpy(out.bytes.data(), data.data(), data.size());
  return out;
}

SparseRows Pickle::csr_matrix(Ref r) const {
  const Value& v = values_[r];
  if (v.kind != Kind::object || v.type != Type::csr_matrix || v.state == kNone)
    expected(r, "a scipy.sparse.csr_matrix");
  return sparse_rows(place(r), shape(field(v.state, "_shape")), array(field(v.state, "indptr")),
                     array(field(v.state, "indices")), array(field(v.state, "data")));
}

}  // namespace heed
