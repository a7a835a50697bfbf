// Expressions of named rules, as users type them: local(2) | (all - self) & random(8, step)
//
//   union  := both {'|' both}      both := less {'&' less}      less := rule {'-' rule}
//   rule   := name ['(' argument {',' argument} ')'] | '(' union ')'
//
// so that `-` binds most tightly and `|` least, as in C++. An argument is a number, a name or a path; one with spaces,
// commas or parentheses stands in double quotes.
#pragma once

#include <string>
#include <vector>

#include "graph/error.h"

namespace heed {

struct Argument {
  std::string text;
  int column = 0;  // in the whole text, from 1 on
};

struct Expression {
  std::string name;  // of a rule, or "|", "&", "-"
  int column = 0;
  std::vector<Argument> arguments;  // of a rule
  std::vector<Expression> sides;    // two, of an operation

  bool is_operation() const { return !sides.empty(); }
};

// Throws Error "column 7: ..." where the text is no expression, or nests more than 100 parentheses.
Expression parse_expression(const std::string& text);

// The arguments of a rule, checked as they are read. All throw Error naming column, rule and what it wants.
class Arguments {
 public:
  // `usage` is how the rule is written: "local(k)".
  Arguments(const Expression& rule, std::string usage) : rule_(rule), usage_(std::move(usage)) {}

  std::size_t count() const { return rule_.arguments.size(); }
  void expect(std::size_t least, std::size_t most) const;
  int whole(std::size_t i, int low, int high) const;
  double number(std::size_t i) const;
  double share(std::size_t i) const;                        // above 0, at most 1
  const std::string& text(std::size_t i) const;             // not empty
  bool word(std::size_t i, const std::string& only) const;  // true; whether there is such an argument, which must
                                                            // be that word
  [[noreturn]] void refuse(std::size_t i, const std::string& wanted) const;

 private:
  const Expression& rule_;
  std::string usage_;
};

// One line for each rule of a kind, for those who ask what there is.
struct RuleEntry {
  std::string name, usage, about;  // about: formula, paper, cost
};

// A value of an expression: rule(expression) for rules, combine(operation, a, b) for operations. Errors of rules get
// their column.
template <class Value, class Rule, class Combine>
Value evaluate(const Expression& e, const Rule& rule, const Combine& combine) {
  if (e.is_operation()) {
    Value a = evaluate<Value>(e.sides[0], rule, combine), b = evaluate<Value>(e.sides[1], rule, combine);
    return combine(e.name[0], std::move(a), std::move(b));
  }
  try {
    return rule(e);
  } catch (const Error& error) {
    const std::string what = error.what();
    if (what.rfind("column ", 0) == 0) throw;
    fail("column " + std::to_string(e.column) + ": " + what);
  }
}

}  // namespace heed
